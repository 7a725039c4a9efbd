"""``--format html|markdown|csv`` of doctor, topology show, explain and replay."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from lxml import html

from vmm_msi import samples

TESTS = Path(__file__).resolve().parent.parent
CAPTURE = TESTS / "captures" / "no-canwbs.tar.zst"
RECORDING = TESTS / "recording" / "no-rmr.json"
GUEST = samples.path("three-devices.xml")
SERVER = samples.path("eight-its-server.dtb")
FAULT = "vfio 0000:01:00.0: error bind device fd=31 to iommufd=30: Operation not permitted"
COMMANDS = {
    "doctor": ("doctor", CAPTURE, "--domain", GUEST),
    "topology": ("topology", "show", CAPTURE),
    "explain": ("explain", "--host", SERVER, "--domain", GUEST, FAULT),
    "replay": ("replay", RECORDING),
}
CODES = {"doctor": 8}


@pytest.fixture
def report(vmm_msi, monkeypatch):
    """Return what a command prints in a format."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")

    def report(command, name, *words):
        code, out, err = vmm_msi(*COMMANDS[command], *words, "--format", name)
        assert (code, err) == (CODES.get(command, 0), "")
        return out

    return report


def rows(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("command", COMMANDS)
def test_markdown_fits_80_columns(report, command):
    lines = report(command, "markdown").splitlines()
    # A fence holds what is to be copied as it is.
    outside = [line for line in lines if line != FAULT]
    assert max(map(len, outside)) <= 80
    assert lines[0].startswith("# ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_format_has_the_provenance(report, command):
    tree = html.document_fromstring(report(command, "html"))
    terms = {
        row.find("dt").text_content(): row.find("dd").text_content()
        for row in tree.xpath("//footer//dl/div")
    }
    assert terms["date"] == "2023-11-14 22:13 UTC"
    assert terms["tool"].startswith("vmm-msi ")
    assert terms["command"].startswith(f"vmm-msi {command}")
    assert terms["command"].endswith("--format html")
    text = report(command, "markdown")
    for name in terms:
        assert f"\n- **{name}**: " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_page_links_to_nothing_outside_itself(report, command):
    tree = html.document_fromstring(report(command, "html"))
    targets = [value for _element, _name, value, _at in tree.iterlinks()]
    ids = set(tree.xpath("//@id"))
    assert {target.removeprefix("#") for target in targets} <= ids
    assert len(tree.xpath("//@id")) == len(ids)


def test_doctor_has_the_findings_of_json(report):
    findings = json.loads(report("doctor", "json"))["findings"]
    keys = ("severity", "id", "subject", "remedy")
    expected = [tuple(finding[key] for key in keys) for finding in findings]
    assert [tuple(row[key] for key in keys) for row in rows(report("doctor", "csv"))] == expected
    tree = html.document_fromstring(report("doctor", "html"))
    sections = tree.xpath("//section[@data-marks]")
    marks = [section.get("data-marks") for section in sections]
    assert marks == sorted(marks, key=["error", "warning", "note", "unknown"].index)
    assert set(marks) == {finding["severity"] for finding in findings}
    text = tree.text_content()
    for finding in findings:
        assert finding["subject"] in text
        for evidence in finding["evidence"]:
            assert evidence["where"] in text
            assert evidence["what"] in text
    remedies = tree.xpath("//div[@class='code']/p/span/text()")
    assert set(remedies) <= {finding["remedy"] for finding in findings}
    assert len(remedies) == len(sections)


def test_doctor_without_findings_says_so(vmm_msi, tmp_path):
    from doctor.cases import HEALTHY

    from vmm_msi.pages.formats import write_page
    from vmm_msi.report.doctor_page import to_page

    page = to_page(HEALTHY, None, [], {})
    assert "No problems found." in write_page(page, "html")
    assert "\nNo problems found.\n" in write_page(page, "markdown")
    assert rows(write_page(page, "csv")) == []


def test_topology_csv_is_the_inventory(report):
    document = json.loads(report("topology", "json"))
    listed = rows(report("topology", "csv"))
    assert [row["address"] for row in listed] == [f["address"] for f in document["functions"]]
    by_address = {row["address"]: row for row in listed}
    for function in document["functions"]:
        row = by_address[function["address"]]
        assert row["driver"] == (function["driver"] or "")
        assert row["smmu"] == ("" if function["smmu"] is None else str(function["smmu"]))
        group = function["iommu_group"]
        assert row["iommu_group"] == ("" if group is None else str(group))
    # A route of the capture: StreamIDs 0x1000-0x14ff for buses 10 to 14.
    assert by_address["0000:14:00.0"]["stream_id"] == "0x1400"
    assert by_address["0000:00:01.0"]["stream_id"] == ""


def test_topology_page_has_every_row_of_the_text(report):
    tree = html.document_fromstring(report("topology", "html"))
    captions = tree.xpath("//table/caption/text()")
    text = report("topology", "text")
    counted = [line for line in text.splitlines() if line.endswith(")") and line[0].isupper()]
    assert captions == [line for line in counted if not line.endswith("(0)")]
    words = set(" ".join(tree.itertext()).split())
    assert {word for line in text.splitlines()[1:] for word in line.split()} - words <= {
        "Devices", "Disagreements", "(0)",
    }  # fmt: skip


def test_topology_map_shows_what_bypasses_the_smmus(vmm_msi):
    _code, out, _err = vmm_msi(*COMMANDS["topology"], "--format", "svg")
    assert ">no SMMU</text>" in out
    _code, out, _err = vmm_msi("topology", "show", SERVER, "--format", "svg")
    assert "no SMMU" not in out


def test_topology_without_functions_says_so(vmm_msi):
    _code, out, _err = vmm_msi("topology", "show", SERVER, "--format", "markdown")
    assert "4 SMMUs, 8 ITSes, no PCI functions listed, stage 2 granule 4K." in out


def test_explain_has_the_explanations_of_json(report):
    (explanation,) = json.loads(report("explain", "json"))["explanations"]
    (row,) = rows(report("explain", "csv"))
    assert row["id"] == explanation["id"] == "qemu-bind"
    assert row["text"] == FAULT
    assert row["why"] == explanation["why"]
    text = html.document_fromstring(report("explain", "html")).text_content()
    for part in (FAULT, explanation["what"], explanation["why"], explanation["source"]):
        assert part in text
    for remedy in explanation["mends"]:
        assert remedy["what"] in text


def test_replay_has_both_sides(report):
    (device,) = json.loads(report("replay", "json"))["devices"]
    recorded, simulated = rows(report("replay", "csv"))
    assert recorded["outcome"] == device["recorded"]["outcome"]
    assert simulated["outcome"] == device["model"]["outcome"]
    assert [recorded["agrees"], simulated["agrees"]] == ["yes", "yes"]
    assert "The simulator agrees with the recording." in report("replay", "markdown")


def test_replay_that_differs_names_the_difference(vmm_msi):
    words = ("replay", RECORDING, "--strategy", "direct", "--format")
    code, out, _err = vmm_msi(*words, "json")
    document = json.loads(out)
    differences = [text for device in document["devices"] for text in device["disagreements"]]
    assert (code, document["agrees"]) == (1, not differences)
    code, out, _err = vmm_msi(*words, "html")
    text = html.document_fromstring(out).text_content()
    assert code == 1
    assert "The simulator does not agree with the recording." in text
    assert all(difference in text for difference in differences)


SCRIPT = "<script>alert(1)</script>"


@pytest.mark.parametrize("name", ["html", "markdown", "csv"])
def test_hostile_log_line_stays_text(vmm_msi, name):
    line = (
        f"vfio 0000:01:00.0: {SCRIPT} | `x` \u202e\x1b[31m: error bind device fd=3 to iommufd=4: no"
    )
    code, out, _err = vmm_msi("explain", "--host", SERVER, line, "--format", name)
    assert "\u202e" not in out
    assert "\x1b" not in out
    if name == "html":
        assert SCRIPT not in out
        assert len(html.document_fromstring(out).xpath("//script")) == 1
    elif code == 0 and name == "markdown":
        fence = out.index("```\n")
        assert SCRIPT in out[fence : out.index("```", fence + 4)]


def test_hostile_finding_stays_text_in_every_format():
    from doctor.cases import HEALTHY

    from vmm_msi.doctor.finding import Evidence, Finding, Severity
    from vmm_msi.pages.formats import write_page
    from vmm_msi.report.doctor_page import to_page

    texts = (f"=1+1{SCRIPT}", "a|b `c` \u202ed", "</style><img src=x>", "@SUM(A1)\r\n# no heading")
    subject, where, consequence, remedy = texts
    evidence = (Evidence(where, consequence),)
    finding = Finding("no-its", Severity.ERROR, subject, evidence, consequence, remedy)
    page = to_page(HEALTHY, "<script>|`guest`", [finding], {})
    tree = html.document_fromstring(write_page(page, "html"))
    assert not tree.xpath("//img")
    assert len(tree.xpath("//script")) == 1
    assert tree.xpath("//h1/text()") == ["Check of host, guest <script>|`guest`"]
    text = write_page(page, "markdown")
    assert "<script" not in text.replace(r"\<script", "")
    assert "<img" not in text.replace(r"\<img", "")
    assert r"a\|b \`c\`" in text
    assert "\n# no heading" not in text
    (row,) = rows(write_page(page, "csv"))
    assert row["subject"] == f"'{subject}"
    assert row["remedy"].startswith("'@SUM")
    assert all("\u202e" not in value for value in row.values())


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "topology"])
def test_svg_is_refused(vmm_msi, command):
    code, out, err = vmm_msi(*COMMANDS[command], "--format", "svg")
    assert (code, out) == (2, "")
    assert "markdown" in err
