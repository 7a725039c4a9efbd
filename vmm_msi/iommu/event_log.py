"""The lines in which Linux's SMMUv3 driver logs an event: an announcement and its four words.

Linux ``drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c`` arm_smmu_dump_raw_event. The same text is in
records of /dev/kmsg, in the output of ``dmesg`` and ``journalctl``, and in a syslog file; they
differ in the prefix of a line and in the notation of a tab.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Words of 64 bits in an event record.
WORDS = 4

_EVENT = re.compile(r"arm-smmu-v3 (\S{1,64}): event 0x([0-9a-f]{2}) received:\s*$")
#: /dev/kmsg writes a tab as ``\\x09``, rsyslog as ``#011``; pasted text may have spaces.
_WORD = re.compile(r"arm-smmu-v3 (\S{1,64}): (?:\\x09|#011|\s{1,16})0x([0-9a-f]{16})\s*$")


@dataclass(frozen=True, slots=True)
class EventLine:
    """A line of an event.

    :param smmu: the driver's name of the SMMU.
    :param words: the words of the event, if the line completes it.
    :param announces: the number of the event, if the line announces it.
    """

    smmu: str
    words: tuple[int, ...] = ()
    announces: int | None = None


class EventReader:
    """Assembles events from lines; lines of several SMMUs may be interleaved."""

    def __init__(self) -> None:
        self._words: dict[str, list[int]] = {}

    def line(self, text: str) -> EventLine | None:
        """Read one line.

        :return: None if it belongs to no event, or to one whose first line was not read.
        """
        if announced := _EVENT.search(text):
            self._words[announced[1]] = []
            return EventLine(announced[1], announces=int(announced[2], 16))
        word = _WORD.search(text)
        if word is None or word[1] not in self._words:
            return None
        words = self._words[word[1]]
        words.append(int(word[2], 16))
        if len(words) < WORDS:
            return EventLine(word[1])
        return EventLine(word[1], tuple(self._words.pop(word[1])))

    def feed(self, record: bytes) -> list[int] | None:
        """Read a record of /dev/kmsg; return the words of the event that it completes, if any.

        A record is as in Linux ``Documentation/ABI/testing/dev-kmsg``.
        """
        text = record.partition(b";")[2].split(b"\n", 1)[0]
        line = self.line(text.decode("utf-8", "replace"))
        return list(line.words) if line is not None and line.words else None

    def clear(self) -> None:
        """Forget incomplete events."""
        self._words.clear()
