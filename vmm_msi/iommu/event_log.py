"""The lines in which Linux's SMMUv3 driver logs an event: an announcement and its four words.

Linux ``drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c`` arm_smmu_dump_raw_event. The same text is in
records of /dev/kmsg, in the output of ``dmesg`` and ``journalctl``, in syslog files and in mail;
they differ in the notation of a tab, and a line may be wrapped or have several words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

#: Words of 64 bits in an event record.
WORDS = 4

_NAME = r"arm-smmu-v3\s{1,8}(?P<smmu>\S{1,64}):"
#: /dev/kmsg writes a tab as ``\\x09``, rsyslog as ``#011``, ``cat -A`` as ``^I``, a mailer as
#: ``=09``; pasted text may have spaces or nothing.
_TAB = r"(?:\\x09|\\t|#011|\^I|=09|\s){0,16}"
_WORD = r"(?:0[xX])?[0-9a-fA-F]{16}\b"
#: What may follow in the same line: ``cat -A`` ends it with a dollar sign.
_END = r"[ \t$`|\\]{0,16}(?=\n|$)"
_EVENT = re.compile(
    rf"{_NAME}\s{{0,8}}event\s{{0,8}}0[xX](?P<number>[0-9a-fA-F]{{2}})\s{{0,8}}received:?"
    rf"(?P<words>(?:[\s,]{{1,16}}{_WORD}){{0,4}}){_END}"
)
_WORDS = re.compile(rf"{_NAME}{_TAB}(?P<words>{_WORD}(?:[\s,]{{1,16}}{_WORD}){{0,3}}){_END}")
_DIGITS = re.compile(r"[0-9a-fA-F]{16}\b")


@dataclass(frozen=True, slots=True)
class EventLine:
    """A line of an event.

    :param smmu: the driver's name of the SMMU.
    :param words: the words of the event, if the line completes it.
    :param announces: the number of the event, if the line announces it.
    :param end: how many characters of the text belong to it.
    """

    smmu: str
    words: tuple[int, ...] = ()
    announces: int | None = None
    end: int = field(default=0, compare=False)


class EventReader:
    """Assembles events from messages of the kernel; those of several SMMUs may be interleaved."""

    def __init__(self) -> None:
        self._words: dict[str, list[int]] = {}

    def line(self, text: str) -> EventLine | None:
        """Read one message; the lines of a wrapped one are separated by line feeds.

        :return: None if it belongs to no event, or to one whose first line was not read.
        """
        if not text.startswith("arm-smmu-v3"):
            return None
        announced = None
        if match := _EVENT.match(text):
            self._words[match["smmu"]] = []
            announced = int(match["number"], 16)
        else:
            match = _WORDS.match(text)
        if match is None or match["smmu"] not in self._words:
            return None
        smmu, words = match["smmu"], self._words[match["smmu"]]
        words += [int(digits, 16) for digits in _DIGITS.findall(match["words"])]
        if len(words) < WORDS:
            return EventLine(smmu, (), announced, match.end())
        return EventLine(smmu, tuple(self._words.pop(smmu)[:WORDS]), announced, match.end())

    def clear(self) -> None:
        """Forget incomplete events."""
        self._words.clear()
