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


TABS = ["\t", "\\x09", "#011", "^I", "=09", "        ", " ", "", "\n", "\xa0"]


@pytest.mark.parametrize("tab", TABS)
@pytest.mark.parametrize("ending", ["", "$", "  ", " `"])
def test_every_notation_of_a_tab(tab, ending):
    *before, last = read(*(line + ending for line in dumped(tab)))
    assert before == [EventLine(SMMU, announces=0x10), *[EventLine(SMMU)] * 3]
    assert last == EventLine(SMMU, WORDS)


@pytest.mark.parametrize(
    "form",
    ["0x{:016x}", "0X{:016X}", "0x{:016X}", "{:016x}", "{:016X}"],
)
@pytest.mark.parametrize("between", [" ", ", ", "\t", "\n"])
def test_words_of_one_line(form, between):
    head = f"arm-smmu-v3 {SMMU}: "
    words = [form.format(word) for word in WORDS]
    one_line = read(f"{head}event 0x10 received: {between.join(words)}")
    assert one_line == [EventLine(SMMU, WORDS, announces=0x10)]
    two_lines = read(f"{head}event 0x10 received:", f"{head}\t{between.join(words)}")
    assert two_lines[1] == EventLine(SMMU, WORDS)
    pairs = [between.join(words[:2]), between.join(words[2:])]
    assert read(f"{head}event 0x10 received:", *(head + pair for pair in pairs))[2] == EventLine(
        SMMU, WORDS
    )


def test_a_wrapped_line_ends_where_the_next_message_starts():
    text = f"arm-smmu-v3\n{SMMU}: event\n0x10 received:"
    (line,) = read(f"{text}\nsomething else")
    assert (line, line.end) == (EventLine(SMMU, announces=0x10), len(text))


def test_other_lines_belong_to_no_event():
    lines = dumped()
    assert read("", "event 0x10 received:", *lines[1:]) == [None] * 6
    assert read(lines[0], "something else", *lines[1:])[-1] == EventLine(SMMU, WORDS)
    assert read(*lines, lines[-1])[-1] is None


def test_a_message_starts_with_the_name_of_the_driver():
    """Text before it shows that a program wrote the line."""
    assert read(*(f"evil: {line}" for line in dumped())) == [None] * 5


def test_words_are_complete_hexadecimal_numbers():
    announced = dumped()[0]
    for word in ("0x10", "10", "0x00000100000000100", "0x000001000000001g", "0x0000010000000010x"):
        assert read(announced, f"arm-smmu-v3 {SMMU}: \t{word}")[1] is None
