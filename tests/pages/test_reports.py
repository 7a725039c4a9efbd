"""The reports of doctor, topology show, explain and replay in a browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from browser import NARROW
from doctor.cases import HEALTHY, B, with_function, with_hardware, with_option

from vmm_msi import samples
from vmm_msi.doctor.rules import examine
from vmm_msi.library.explanation import explain_log
from vmm_msi.library.hosts import load_host
from vmm_msi.pages.html_writer import to_html
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.recording import recording_json
from vmm_msi.recording.replay import replay
from vmm_msi.report import doctor_page, explain_page, replay_page, topology_page

TESTS = Path(__file__).resolve().parent.parent
PROVENANCE = {"tool": "vmm-msi", "command": "vmm-msi doctor"}
LOG = """\
arm-smmu-v3 30000000.iommu: event 0x10 received:
arm-smmu-v3 30000000.iommu: 	0x0000010000000010
arm-smmu-v3 30000000.iommu: 	0x0000028000000000
arm-smmu-v3 30000000.iommu: 	0x00000000fffff040
arm-smmu-v3 30000000.iommu: 	0x0000000008090000
vfio 0000:01:00.0: error bind device fd=31 to iommufd=30: Operation not permitted
an ordinary line
"""


def doctor():
    case = with_hardware(HEALTHY, 1, s2fwb=False)
    case = with_function(case, B, driver="nvme", class_code=0x010802)
    case = with_option(case, "VFIO_DEVICE_CDEV", None)
    case = replace(case, devices=HEALTHY.devices)
    return doctor_page.to_page(case, None, examine(case), PROVENANCE)


def topology():
    host = load_host([TESTS / "captures" / "two-smmus.tar.zst"])
    return topology_page.to_page(host.topology, host.disagreements, PROVENANCE)


def explain():
    host, guest = samples.path("eight-its-server.dtb"), samples.path("three-devices.xml")
    return explain_page.to_page(explain_log(LOG, host, guest).explained, PROVENANCE)


def replayed():
    recording = recording_json.read(TESTS / "recording" / "two-nvmes.json")
    result = replay(recording, PluginManager.load(), "first-in-group")
    return replay_page.to_page(result, PROVENANCE)


REPORTS = {"doctor": doctor, "topology": topology, "explain": explain, "replay": replayed}


@pytest.mark.parametrize("name", REPORTS)
def test_every_view_passes_every_check(read, pictures, name):
    page = REPORTS[name]()
    reader = read(to_html(page))
    for view in reader.views():
        assert reader.violations() == []
        assert reader.overflow() == 0
        reader.picture(pictures / f"{name}-{view}.png")
    sheets, text = reader.printed(pictures / f"{name}.pdf")
    assert sheets > 0
    assert page.title in " ".join(text.split())


@pytest.mark.parametrize("name", REPORTS)
def test_it_is_readable_without_scripts(read, name):
    page = REPORTS[name]()
    with_scripts, without = (
        read(to_html(page), scripts=scripts).page.inner_text("main") for scripts in (True, False)
    )
    lines = [line.strip() for line in with_scripts.splitlines()]
    assert lines
    # The script adds its controls and changes nothing else.
    assert not set(map(str.strip, without.splitlines())) - set(lines)


@pytest.fixture
def findings(read):
    return read(to_html(doctor())).page


def visible(page):
    return page.locator("section:visible > h2").all_inner_texts()


def test_filter_by_severity_with_the_keyboard(findings):
    headings = visible(findings)
    assert {heading.partition(":")[0] for heading in headings} == {"Error", "Note"}
    findings.keyboard.press("Tab")
    assert findings.evaluate("document.activeElement.textContent") == "To the report"
    findings.keyboard.press("Tab")
    assert findings.evaluate("document.activeElement.value") == "error"
    findings.keyboard.press("Space")
    assert visible(findings) == [heading for heading in headings if "Error" not in heading]
    assert f"of {len(headings)} entries shown" in findings.inner_text(".filter output")
    findings.keyboard.press("Space")
    assert visible(findings) == headings
    assert findings.inner_text(".filter output") == ""


def test_filter_by_text(findings):
    findings.get_by_label("with the text").fill("HOST-driver")
    assert visible(findings) == ["Note: Device in use by the host"]
    findings.get_by_label("with the text").fill("no such words")
    assert visible(findings) == []
    assert findings.inner_text(".filter output").startswith("0 of ")


def test_filter_is_announced(findings):
    assert findings.get_attribute(".filter output", "aria-live") == "polite"


def test_remedy_is_copied(findings):
    findings.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = findings.get_by_role("button", name="Copy remedy").first
    button.focus()
    findings.keyboard.press("Enter")
    findings.get_by_role("button", name="Copied").wait_for()
    remedy = findings.locator(".code span").first.inner_text()
    assert findings.evaluate("navigator.clipboard.readText()") == remedy


def test_remedy_is_selected_where_the_clipboard_is_not_allowed(findings):
    findings.evaluate(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })"
    )
    findings.get_by_role("button", name="Copy remedy").first.press("Enter")
    findings.get_by_role("button", name="Selected: press Ctrl+C").wait_for()
    remedy = findings.locator(".code span").first.inner_text()
    assert findings.evaluate("getSelection().toString()") == remedy


def test_fragment_leads_to_a_finding(read):
    reader = read(to_html(doctor()), width=NARROW)
    reader.page.goto(f"{reader.url}#host-driver")
    assert reader.page.locator("#host-driver h2").is_visible()
    top = reader.page.locator("#host-driver").bounding_box()["y"]
    assert -1 <= top < 800


def test_rows_of_a_host_are_filtered(read):
    page = read(to_html(topology())).page
    page.get_by_label("Rows with the text").last.fill("nvme")
    rows = page.locator("table", has_text="PCI functions").locator("tbody tr:visible")
    assert rows.count() == 1
    assert "0000:14:00.0" in rows.first.inner_text()


def test_explanations_are_filtered_by_program(read):
    page = read(to_html(explain())).page
    assert visible(page) == ["Line 1: smmu-F_TRANSLATION", "Line 6: qemu-bind"]
    page.get_by_label("kernel").uncheck()
    assert visible(page) == ["Line 6: qemu-bind"]


def test_what_is_printed_has_no_controls(read, pictures):
    _sheets, text = read(to_html(doctor())).printed(pictures / "doctor-printed.pdf")
    for control in ("Copy remedy", "with the text", "To the report"):
        assert control not in text
