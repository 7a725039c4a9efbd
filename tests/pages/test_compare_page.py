"""The report of ``compare`` in a browser: its pictures are stepped through with the keyboard."""

from __future__ import annotations

import pytest

from vmm_msi import samples
from vmm_msi.library.comparison import compare
from vmm_msi.pages.html_writer import to_html
from vmm_msi.report.compare_page import to_page

PROVENANCE = {"tool": "vmm-msi", "command": "vmm-msi compare"}


def report(name, *strategies):
    comparison = compare(scenario=samples.path(name), strategies=strategies)
    return to_html(to_page(comparison.scenario, comparison.results, PROVENANCE))


@pytest.fixture(scope="module")
def two_its():
    return report("two-its.toml", "direct", "host-cookie", "identity")


def shown(page):
    return [walk.get_attribute("aria-label") for walk in page.query_selector_all(".walk.shown")]


def step(page):
    return page.eval_on_selector_all(
        ".walk.shown li[aria-current] b", "items => items.map(item => item.textContent)"
    )


def test_every_view_passes_every_check(read, pictures):
    reader = read(report("two-its.toml"))
    for view in reader.views():
        assert reader.violations() == []
        assert reader.overflow() == 0
        reader.picture(pictures / f"compare-{view}.png")
    sheets, text = reader.printed(pictures / "compare.pdf")
    assert sheets > 0
    assert "Where the MSIs of 2 devices land" in text


def test_a_wide_matrix_scrolls_in_its_place(read, pictures):
    reader = read(report("eight-its.toml"))
    assert reader.violations() == []
    assert reader.overflow() == 0
    reader.picture(pictures / "compare-eight-its.png")


def test_it_opens_with_the_first_path_that_breaks(read, two_its):
    page = read(two_its).page
    assert shown(page) == ["direct on linux-7.2-bind: 0000:02:00.0, vector 0: refused"]


def test_keyboard_alone_chooses_a_cell_and_steps(read, two_its):
    page = read(two_its).page
    page.focus("td a")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    # The page follows the link a moment after the key.
    page.wait_for_selector(".walk.shown:focus")
    assert shown(page) == ["host-cookie on linux-7.2: 0000:01:00.0, vector 0: s1-fault"]
    assert page.get_attribute("td a.chosen", "aria-current") == "true"
    page.keyboard.press("ArrowRight")
    assert step(page) == ["device"]
    page.keyboard.press("ArrowRight")
    assert step(page) == ["stage 1"]
    assert "F_TRANSLATION (stage 1)" in page.inner_text(".controls output")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert step(page) == []
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    assert step(page) == ["interrupt"]


def test_buttons_step_too(read, two_its):
    page = read(two_its).page
    page.click("button[data-go='1']")
    assert step(page) == ["device"]
    assert page.locator(".walk.shown g.now").get_attribute("data-step") == "1"
    page.click("text=Whole path")
    assert step(page) == []


def test_two_strategies_side_by_side_step_together(read, two_its):
    page = read(two_its).page
    page.select_option(".controls select", "identity")
    assert shown(page) == [
        "direct on linux-7.2-bind: 0000:02:00.0, vector 0: refused",
        "identity on linux-7.2: 0000:02:00.0, vector 0: delivered",
    ]
    page.click("button[data-go='1']")
    assert step(page) == ["device", "device"]
    assert page.locator("td a.beside").count() == 1


def test_filter_of_rows(read, two_its):
    page = read(two_its).page
    page.fill(".rows input >> nth=0", "HOST-COOK")
    assert page.locator("table >> nth=0").locator("tbody tr:visible").count() == 1
    assert page.inner_text(".rows output >> nth=0") == "1 of 3 rows shown"
    page.fill(".rows input >> nth=0", "identity qemu, direct simulator, COOKIE")
    assert page.inner_text(".rows output >> nth=0") == "2 of 3 rows shown"


def test_a_link_shows_its_path_without_scripts(read, two_its):
    page = read(two_its, scripts=False).page
    assert page.locator(".controls").is_hidden()
    assert page.locator(".walk:visible").count() == 0
    page.click("td a >> nth=2")
    assert page.locator(".walk:visible").get_attribute("aria-label").startswith("host-cookie on")
