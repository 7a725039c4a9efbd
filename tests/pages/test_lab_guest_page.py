"""A guest test as a page: prediction and result, counts over time, vectors, faults."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import json_schemas
import pytest

from vmm_msi.lab.guest.host_counter import predictions
from vmm_msi.lab.guest.result import (
    DeviceRun,
    GuestTestResult,
    Phase,
    Prediction,
    Rmr,
    Sample,
    Vector,
)
from vmm_msi.pages.chart import Panel, Series, chart
from vmm_msi.pages.drawing import to_svg
from vmm_msi.pages.formats import write_page
from vmm_msi.report import lab_guest
from vmm_msi.report.lab_guest_page import to_page
from vmm_msi.types import Iova, Pa, PciAddress

HOST, OTHER, GUEST = (PciAddress(0, bus, 0, 0) for bus in (0x11, 0x12, 0x21))
DRIVE = DeviceRun(
    HOST,
    GUEST,
    "nvme",
    "reads of nvme0n1",
    done=100,
    seconds=0.5,
    each=True,
    vectors=(Vector("nvme0q0", 10, 10), Vector("nvme0q1", 1, 101)),
    landed={1: 100},
)
CARD = replace(DRIVE, each=False, vectors=(Vector("eth0-tx-0", 0, 80),), landed={0: 120})
RUN = GuestTestResult(
    {"linux": "7.2.12", "libvirt": "12.8.0", "qemu": "11.1.2"},
    [Phase("start", [DRIVE])],
    [Rmr(0x800_0000, 0x10_0000)],
    [{"id": 1, "devices": [str(GUEST)], "reserved": ["0x1 0x2 direct"], "type": "DMA"}],
    predicted=[{"severity": "note", "id": "no-migration", "subject": "guest lab-guest"}],
)

DELIVERED = Prediction("delivered", (Iova(0x800_0040), Iova(0x800_1040)))
SAMPLED = replace(DRIVE, samples=(Sample(0.0, 0, 0), Sample(0.2, 50, 49)))
FAULT = "arm-smmu-v3 arm-smmu-v3.0.auto: event: F_TRANSLATION <b>"
LOST = replace(SAMPLED, vectors=(Vector("nvme0q1", 1, 1),), landed={})
TEST = replace(
    RUN,
    phases=[Phase("start", [SAMPLED]), Phase(f"misdirect {HOST}: 0x8001040", [LOST])],
    expected={HOST: DELIVERED},
    host_faults=[FAULT, FAULT],
    explained=["why: stage 2 has no mapping"],
    seconds={"start": 31.25},
)


def page(run, name):
    return write_page(to_page(run, {"command": "vmm-msi lab guest"}), name)


def test_markdown_has_prediction_result_counts_and_faults():
    lines = page(TEST, "markdown")
    words = " ".join(lines.split())
    assert "An MSI was lost, or reached another ITS." in words
    assert "delivered at 0x8000040 or 0x8001040" in words
    assert "delivered: 100 interrupts" in words
    assert "0 interrupts of 100 operations" in words
    assert "interrupts 0 after 0.00 s, 49 after 0.20 s, 100 after 0.50 s" in words
    assert "nvme0q1" in words
    assert "2 times: arm-smmu-v3" in words
    assert "The guest's kernel logged no fault." in words
    assert "why: stage 2 has no mapping" in words
    assert "no-migration" in words


def test_html_has_a_chart_for_each_phase_and_escapes_the_log():
    text = page(TEST, "html")
    assert text.count("Operations and interrupts over time, after start") >= 1
    assert text.count("<polyline") >= 12
    assert "F_TRANSLATION <b>" not in text
    assert "F_TRANSLATION &lt;b&gt;" in text


def test_csv_has_a_row_for_each_sample():
    rows = list(csv.DictReader(io.StringIO(page(TEST, "csv"))))
    assert [(r["after"].split()[0], r["seconds"], r["interrupts"]) for r in rows] == [
        ("start", "0.000", "0"),
        ("start", "0.200", "49"),
        ("start", "0.500", "100"),
        ("misdirect", "0.000", "0"),
        ("misdirect", "0.200", "49"),
        ("misdirect", "0.500", "0"),
    ]
    assert {r["device"] for r in rows} == {str(HOST)}


def test_json_has_the_samples_and_the_predictions():
    document = json.loads(json.dumps(lab_guest.to_json(TEST)))
    json_schemas.check("lab-guest", document)
    assert document["expected"] == {
        str(HOST): {"outcome": "delivered", "possible_iovas": ["0x8000040", "0x8001040"]}
    }
    (device,) = document["phases"][0]["devices"]
    assert device["samples"] == [
        {"seconds": 0.0, "done": 0, "interrupts": 0},
        {"seconds": 0.2, "done": 50, "interrupts": 49},
        {"seconds": 0.5, "done": 100, "interrupts": 100},
    ]
    assert (
        json.loads(json.dumps(lab_guest.to_json(RUN)))["phases"][0]["devices"][0]["samples"] == []
    )


@pytest.mark.parametrize(
    ("device", "came"),
    [
        (CARD, "delivered: 80 interrupts"),
        (replace(CARD, misrouted={Pa(0x808_0000): 2}), "misrouted: 2 at 0x8080000"),
        (DeviceRun(HOST, None), "not in the guest"),
    ],
)
def test_what_came(device, came):
    assert came in page(replace(RUN, phases=[Phase("start", [device])]), "markdown")


def test_a_device_that_was_unplugged():
    both = Phase("start", [DRIVE, replace(DRIVE, host=OTHER)])
    run = replace(RUN, phases=[both, Phase(f"unplug {OTHER}", [DRIVE])])
    words = page(run, "markdown")
    assert re.search(rf"{OTHER} +\| unplugged", words)
    assert re.search(rf"{OTHER} +\| unknown", words)


def test_a_prediction_made_before_the_rmrs_were_removed():
    text = page(replace(TEST, rmrs=[]), "markdown")
    assert "RMRs were removed" in " ".join(text.split())


def test_predictions_of_attach():
    predicted = {
        "outcome": "delivered",
        "programmed_iova": "0x8000040",
        "possible_iovas": ["0x8000040", "0x8001040"],
    }
    devices = [
        {"device": str(HOST), "predicted": predicted},
        {"device": str(OTHER), "predicted": None},
    ]
    assert predictions(json.dumps({"devices": devices})) == {HOST: DELIVERED}


def test_a_chart_keeps_its_points_inside_and_survives_zero():
    panels = [
        Panel("counted", (Series("done", ((0, 0), (2, 40)), "quiet"), Series("came", ((0, 0),)))),
        Panel("nothing", (Series("came", ((0, 0), (0, 0))),)),
        Panel("third", (Series("came", ((0, 1), (1, 1))),)),
    ]
    drawing = chart("a chart", panels)
    svg = to_svg(drawing, alone=True)
    points = [
        tuple(map(float, point.split(",")))
        for line in re.findall(r'<polyline points="([^"]*)"', svg)
        for point in line.split()
    ]
    assert len(points) > 20
    assert all(0 <= x <= drawing.width and 0 <= y <= drawing.height for x, y in points)


def test_every_view_passes_every_check(read, pictures):
    reader = read(page(TEST, "html"))
    for view in reader.views():
        assert reader.violations() == []
        assert reader.overflow() == 0
        reader.picture(pictures / f"lab-guest-{view}.png")
    _sheets, text = reader.printed(pictures / "lab-guest.pdf")
    assert "nvme0q1" in text


def test_a_dashed_line_is_not_filled(read):
    fills = read(page(TEST, "html")).page.evaluate(
        "[...document.querySelectorAll('polyline')].map(e => getComputedStyle(e).fill)"
    )
    assert set(fills) == {"none"}
