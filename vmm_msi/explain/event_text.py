"""Events of SMMUv3s in a log: their dumped words, and the lines that decode them.

Linux 7.2 ``drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c`` arm_smmu_dump_event prints both, older
kernels print only the words, and the output of grep may have only one decoded line.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.errors import InputError
from vmm_msi.explain.faults import Logged
from vmm_msi.iommu.event_log import WORDS, EventReader
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent, decode
from vmm_msi.types import Iova, Ipa, PciAddress, StreamId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_msi.explain.log_lines import Line

_HEX = r"(?:0x)?([0-9a-f]{1,16})"
_DECODED = re.compile(
    r"arm-smmu-v3 (?P<smmu>\S{1,64}): event: (?P<name>[A-Z_]{1,32}) client: "
    r"(?P<client>\(unassigned sid\)|\S{1,64}) sid: (?:0x)?(?P<sid>[0-9a-f]{1,8}) "
    r"ssid: (?:0x)?[0-9a-f]{1,8}"
    r"(?: iova: (?:0x)?(?P<iova>[0-9a-f]{1,16}) ipa: (?:0x)?(?P<ipa>[0-9a-f]{1,16}))?"
)
_ACCESS = re.compile(
    r"arm-smmu-v3 (?P<smmu>\S{1,64}): (?P<access>(?:un)?priv (?:inst|data) (?:read|write)) "
    r's(?P<stage>[12]) "(?P<kind>[^"]{1,64})"'
)
_TRACE = re.compile(
    r"smmuv3_(?:propagate|record)_event (?P<name>[A-Z_]{1,32}) sid=(?:0x)?(?P<sid>[0-9a-f]{1,8})"
)
_BARE = re.compile(rf"\s*{_HEX}[\s,]+{_HEX}[\s,]+{_HEX}[\s,]+{_HEX}\s*")
_SUPPRESSED = re.compile(r"arm_smmu_evtq_thread: (\d{1,9}) callbacks suppressed")
_NEED_STAGE = {
    EventKind.F_TRANSLATION,
    EventKind.F_ADDR_SIZE,
    EventKind.F_ACCESS,
    EventKind.F_PERMISSION,
}


@dataclass(slots=True)
class Pending:
    """An event that later lines may complete.

    :param from_words: it was decoded from its words.
    """

    line: Line
    logged: Logged
    from_words: bool


class EventText:
    """Parses lines into events, each with its first line.

    An event is complete at the next event of its SMMU, or at the end of the text.

    :ivar suppressed: number of events that the kernel counted and did not log.
    """

    def __init__(self) -> None:
        self._reader = EventReader()
        self._announced: dict[str, tuple[Line, int]] = {}
        self._pending: dict[str, Pending] = {}
        self._complete: list[Pending] = []
        self.suppressed = 0

    def line(self, line: Line) -> bool:
        """Parse a line; return whether it belongs to an event."""
        text = line.text
        piece = self._reader.line(text)
        if piece is not None:
            if piece.announces is not None:
                self._drop_words(piece.smmu)
                self._announced[piece.smmu] = (line, piece.announces)
            elif piece.words:
                first, _number = self._announced.pop(piece.smmu)
                self._begin(first, of_words(piece.words, piece.smmu), from_words=True)
            return True
        return self._decoded(line) or self._access(text) or self._single_line(line)

    def take(self) -> list[Pending]:
        """Return the complete events and forget them."""
        complete, self._complete = self._complete, []
        return complete

    def end(self) -> list[Pending]:
        """Return the remaining events, at the end of the text."""
        for smmu in list(self._announced):
            self._drop_words(smmu)
        self._complete += self._pending.values()
        self._pending.clear()
        return self.take()

    def _drop_words(self, smmu: str) -> None:
        """Complete an event whose words are missing or cut off."""
        announced = self._announced.pop(smmu, None)
        if announced is not None:
            line, number = announced
            self._complete.append(Pending(line, Logged(number, None, smmu), True))

    def _begin(self, line: Line, logged: Logged, *, from_words: bool) -> None:
        previous = self._pending.pop(logged.smmu, None)
        if previous is not None:
            self._complete.append(previous)
        self._pending[logged.smmu] = Pending(line, logged, from_words)

    def _decoded(self, line: Line) -> bool:
        match = _DECODED.search(line.text)
        if match is None:
            return False
        decoded = _from_decoded(match)
        self._announced.pop(decoded.smmu, None)  # the decoded line has more than the announcement
        pending = self._pending.get(decoded.smmu)
        if pending is not None and pending.from_words and _same(pending.logged, decoded):
            pending.logged = replace(pending.logged, client=decoded.client)
        else:
            self._begin(line, decoded, from_words=False)
        return True

    def _access(self, text: str) -> bool:
        match = _ACCESS.search(text)
        if match is None:
            return False
        pending = self._pending.get(match["smmu"])
        if pending is None or pending.logged.event is None:
            return False
        event = pending.logged.event
        if not pending.from_words and event.kind in _NEED_STAGE:
            stage = int(match["stage"])
            walk = stage == 2 and match["kind"].startswith("Stage 1")
            ipa = event.ipa
            if stage == 1:
                ipa = None
            elif ipa is not None and not walk:
                ipa = Ipa(ipa | event.iova & 0xFFF)
            event = replace(event, stage=stage, ipa=ipa, table_walk=walk)
        pending.logged = replace(pending.logged, event=event, access=match["access"])
        return True

    def _single_line(self, line: Line) -> bool:
        """Parse a line that is an event by itself: words, a trace of QEMU, a count."""
        suppressed = _SUPPRESSED.search(line.text)
        if suppressed is not None:
            self.suppressed += int(suppressed[1])
            return True
        bare = _BARE.fullmatch(line.text)
        if bare is not None:
            self._complete.append(
                Pending(line, of_words([int(w, 16) for w in bare.groups()]), True)
            )
            return True
        trace = _TRACE.search(line.text)
        if trace is None or trace["name"] not in EventKind.__members__:
            return False
        kind = EventKind[trace["name"]]
        stage = 1 if kind in _NEED_STAGE else 0
        event = SmmuEvent(kind, stage, StreamId(int(trace["sid"], 16)), Iova(0))
        self._complete.append(Pending(line, Logged(kind, event), False))
        return True


def of_words(words: Sequence[int], smmu: str = "") -> Logged:
    """Return the event of four words."""
    event = None
    with suppress(ValueError):
        event = decode(words[:WORDS])
    return Logged(words[0] & 0xFF, event, smmu)


def _from_decoded(match: re.Match[str]) -> Logged:
    """Return the event of a decoded line; its stage is in the line after it."""
    client = None
    with suppress(InputError):
        client = PciAddress.parse(match["client"])
    kind = EventKind.__members__.get(match["name"])
    event = None
    if kind is not None:
        stage, ipa = 0, None
        if kind in _NEED_STAGE:
            # A guess until the next line: stage 2 has an IPA, which may be 0, though.
            ipa = Ipa(int(match["ipa"] or "0", 16)) or None
            stage = 1 if ipa is None else 2
        iova = Iova(int(match["iova"] or "0", 16))
        event = SmmuEvent(kind, stage, StreamId(int(match["sid"], 16)), iova, ipa)
    return Logged(0 if kind is None else kind, event, match["smmu"], client)


def _same(words: Logged, decoded: Logged) -> bool:
    first, second = words.event, decoded.event
    if first is None or second is None:
        return first is second
    return (first.kind, first.stream_id) == (second.kind, second.stream_id)
