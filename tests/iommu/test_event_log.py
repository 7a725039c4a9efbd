"""Lines of an SMMUv3's event in a log, as different programs print them."""

from __future__ import annotations

import pytest

from vmm_msi.iommu.event_log import EventLine, EventReader

SMMU = "arm-smmu-v3.0.auto"
WORDS = (0x100_0000_0010, 0x200_0000_0000, 0x800_0040, 0)


def read(*lines):
    reader = EventReader()
    return [reader.line(line) for line in lines]


def dumped(tab="\t", head=f"arm-smmu-v3 {SMMU}: "):
    words = [f"{head}{tab}0x{word:016x}" for word in WORDS]
    return [f"{head}event 0x10 received:", *words]


@pytest.mark.parametrize("tab", ["\t", "\\x09", "#011", "        ", " "])
@pytest.mark.parametrize(
    "head",
    [
        f"arm-smmu-v3 {SMMU}: ",
        f"[   12.345678] arm-smmu-v3 {SMMU}: ",
        f"Nov 25 00:29:56 host kernel: arm-smmu-v3 {SMMU}: ",
    ],
)
def test_every_notation_of_a_tab(tab, head):
    *before, last = read(*dumped(tab, head))
    assert before == [EventLine(SMMU, announces=0x10), *[EventLine(SMMU)] * 3]
    assert last == EventLine(SMMU, WORDS)


def test_other_lines_belong_to_no_event():
    lines = dumped()
    assert read("", "event 0x10 received:", *lines[1:]) == [None] * 6
    assert read(lines[0], "something else", *lines[1:])[-1] == EventLine(SMMU, WORDS)
    assert read(*lines, lines[-1])[-1] is None


def test_words_are_complete_hexadecimal_numbers():
    announced = dumped()[0]
    for word in ("0x10", "0000010000000010", "0x00000100000000100", "0x000001000000001g"):
        assert read(announced, f"arm-smmu-v3 {SMMU}: \t{word}")[1] is None
