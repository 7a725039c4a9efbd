"""``vmm-msi compare --format html|markdown|csv|svg``: one answer in every format."""

from __future__ import annotations

import csv
import io
import json

import pytest
from lxml import etree, html

from vmm_msi import samples
from vmm_msi.plugins.hookspecs import PluginKind
from vmm_msi.plugins.manager import PluginManager

TWO_ITS = samples.path("two-its.toml")
SVG = "{http://www.w3.org/2000/svg}"
SHIPPED = PluginManager.load().names(PluginKind.STRATEGY)
STRATEGIES = ("--strategy", "direct", "--strategy", "host-cookie", "--strategy", "identity")


@pytest.fixture
def compared(vmm_msi, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")

    def compared(*words):
        code, out, err = vmm_msi("compare", "--scenario", TWO_ITS, *words)
        assert (code, err) == (0, "")
        return out

    return compared


def test_every_format_has_the_outcomes_of_json(compared):
    document = json.loads(compared("--format", "json"))
    expected = [
        (result["strategy"], verdict["device"], verdict["outcome"], verdict["reason"])
        for result in document["results"]
        for verdict in result["verdicts"]
    ]
    rows = list(csv.DictReader(io.StringIO(compared("--format", "csv"), newline="")))
    keys = ("device", "outcome", "reason")
    assert [(r["strategy"].partition(":")[0], *(r[k] for k in keys)) for r in rows] == expected
    tree = html.document_fromstring(compared("--format", "html"))
    links = tree.xpath("//td/a")
    outcomes = [link.text_content().split()[0] for link in links]
    assert outcomes == [outcome for _strategy, _device, outcome, _reason in expected]
    lines = compared("--format", "markdown").splitlines()
    assert all(len(line) <= 80 for line in lines)
    for result in document["results"]:
        assert any(line.startswith(f"| {result['strategy']}") for line in lines)


def test_each_cell_leads_to_its_path(compared):
    tree = html.document_fromstring(compared("--format", "html", *STRATEGIES))
    for link in tree.xpath("//td/a"):
        walk = tree.get_element_by_id(link.get("href").removeprefix("#"))
        assert walk.get("aria-label").endswith(link.text_content().split()[0])
        assert len(walk.xpath(".//li")) == len(walk.xpath(".//g[@data-step]")) == 5


def test_the_broken_place_is_marked(compared):
    tree = html.document_fromstring(compared("--format", "html", "--strategy", "host-cookie"))
    walk = tree.xpath("//article")[0]
    broken = walk.xpath(".//g[@class='bad']")
    assert [group.get("data-step") for group in broken] == ["2"]
    assert "stage 1" in broken[0].text_content()
    assert walk.xpath(".//li[@class='bad']/b/text()") == ["stage 1"]
    assert "F_TRANSLATION" in walk.xpath(".//li[@class='bad']")[0].text_content()


def test_provenance(compared):
    tree = html.document_fromstring(compared("--format", "html", "--strategy", "direct"))
    terms = {
        row.find("dt").text_content(): row.find("dd").text_content()
        for row in tree.xpath("//footer//dl/div")
    }
    assert terms["host"] == str(TWO_ITS)
    assert terms["date"] == "2023-11-14 22:13 UTC"
    assert terms["tool"].startswith("vmm-msi ")
    words = "--format html --strategy direct"
    assert terms["command"] == f"vmm-msi compare --scenario {TWO_ITS} {words}"
    assert set(terms) == {"host", "guest", "tool", "date", "command"}


def test_picture_shows_the_first_device_or_the_traced_one(compared):
    first = etree.fromstring(compared("--format", "svg", *STRATEGIES))
    assert "0000:01:00.0" in first.find(f"{SVG}title").text
    traced = etree.fromstring(compared("--format", "svg", "--trace", "0000:02:00.0:1", *STRATEGIES))
    texts = [node.text for node in traced.iter(f"{SVG}text")]
    assert "identity on linux-7.2: 0000:02:00.0, vector 1: delivered" in texts
    assert "0x200050040" in texts
    assert (texts.count("✗ ends here"), texts.count("✗ no MSI is sent")) == (1, 1)


def test_a_picture_without_a_strategy_says_so(compared):
    disabled = [word for name in SHIPPED for word in ("--disable-plugin", name)]
    picture = etree.fromstring(compared("--format", "svg", *disabled))
    texts = [node.text for node in picture.iter(f"{SVG}text")]
    assert texts == ["Path of an MSI of 0000:01:00.0, vector 0: no strategy"]


def test_strategies_that_share_a_path_share_a_picture(compared):
    words = ("--strategy", "coerced:revision=v2", "--strategy", "coerced:revision=v4")
    picture = etree.fromstring(compared("--format", "svg", *words))
    texts = [node.text for node in picture.iter(f"{SVG}text")]
    title = "coerced:revision=v2, coerced:revision=v4 on linux-7.2-bind: 0000:01:00.0, vector 0:"
    assert [text for text in texts if "coerced" in text] == [f"{title} delivered"]


def test_devices_that_fare_alike_share_a_column(vmm_msi, tmp_path):
    from scenarios import Device, Sample

    devices = [
        Device(f"0000:{1 + n // 8:02x}:{n % 8:02x}.0", n % 2, giova=0xFFFF0000 - 0x1000 * n)
        for n in range(40)
    ]
    path = tmp_path / "many.toml"
    path.write_text(Sample(tuple(devices)).toml())
    words = ("--scenario", path, "--strategy", "identity", "--strategy", "direct")
    _code, out, _err = vmm_msi("compare", *words, "--format", "html")
    tree = html.document_fromstring(out)
    columns = [
        text for text in tree.xpath("//table[1]//th[@scope='col']/text()") if "0000:" in text
    ]
    assert columns == [
        "0000:01:00.0 and 19 others ITS 0",
        "0000:01:01.0 and 19 others ITS 1",
    ]
    listed = " ".join(tree.xpath("//tr[th[contains(., 'others')]]/td/text()")).split()
    assert sorted(listed) == sorted(device.address for device in devices)


@pytest.mark.parametrize("name", ["json", "html", "markdown", "csv"])
def test_trace_is_for_text_and_pictures(vmm_msi, name):
    words = ("--scenario", TWO_ITS, "--format", name, "--trace", "0000:01:00.0")
    code, out, err = vmm_msi("compare", *words)
    assert (code, out) == (2, "")
    assert f"--trace with --format {name}" in err
