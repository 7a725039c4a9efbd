"""How Linux's SMMUv3 driver writes an event down: a line that announces it, and its four words.

Linux ``drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c`` arm_smmu_dump_raw_event. The same text is in
records of /dev/kmsg, in what ``dmesg`` and ``journalctl`` print, and in a syslog file; they differ
in what stands before it and in how a tab is shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Words of 64 bits in an event record.
WORDS = 4

_EVENT = re.compile(r"arm-smmu-v3 (\S{1,64}): event 0x([0-9a-f]{2}) received:\s*$")
#: /dev/kmsg writes a tab as ``\\x09``, rsyslog as ``#011``; one that was pasted may be spaces.
_WORD = re.compile(r"arm-smmu-v3 (\S{1,64}): (?:\\x09|#011|\s{1,16})0x([0-9a-f]{16})\s*$")


@dataclass(frozen=True, slots=True)
class Piece:
    """A line of an event.

    :param smmu: the driver's name of the SMMU.
    :param words: the words of the event that the line completes; empty before that.
    :param announces: the number of the event that begins with the line.
    """

    smmu: str
    words: tuple[int, ...] = ()
    announces: int | None = None


class EventReader:
    """Puts events together from lines; those of several SMMUs may be mixed."""

    def __init__(self) -> None:
        self._words: dict[str, list[int]] = {}

    def line(self, text: str) -> Piece | None:
        """Take one line.

        :return: None where it is of no event, or of one whose first line was not seen.
        """
        if announced := _EVENT.search(text):
            self._words[announced[1]] = []
            return Piece(announced[1], announces=int(announced[2], 16))
        word = _WORD.search(text)
        if word is None or word[1] not in self._words:
            return None
        words = self._words[word[1]]
        words.append(int(word[2], 16))
        if len(words) < WORDS:
            return Piece(word[1])
        return Piece(word[1], tuple(self._words.pop(word[1])))

    def feed(self, record: bytes) -> list[int] | None:
        """Take one record of /dev/kmsg and return the words of the event that it completes.

        A record is as in Linux ``Documentation/ABI/testing/dev-kmsg``.
        """
        text = record.partition(b";")[2].split(b"\n", 1)[0]
        piece = self.line(text.decode("utf-8", "replace"))
        return list(piece.words) if piece is not None and piece.words else None

    def clear(self) -> None:
        """Forget the events that are not complete."""
        self._words.clear()
