"""Events of SMMUv3s in a log: the words that were dumped, and the lines that say what is in them.

Linux 7.2 ``drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c`` arm_smmu_dump_event prints both; older
kernels the words alone; and who looks for one line with grep has that alone.
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
    """An event of which more lines may come."""

    line: Line
    logged: Logged
    from_words: bool


class EventText:
    """Takes lines and gives events, each with the line it began at.

    An event is given out when nothing more can belong to it: at the next one of its SMMU, or at the
    end.
    """

    def __init__(self) -> None:
        self._reader = EventReader()
        self._begun: dict[str, tuple[Line, int]] = {}
        self._pending: dict[str, Pending] = {}
        self._done: list[Pending] = []
        self.suppressed = 0

    def line(self, line: Line) -> bool:
        """Take one line and tell whether it is of an event."""
        text = line.text
        piece = self._reader.line(text)
        if piece is not None:
            if piece.announces is not None:
                self._give_up(piece.smmu)
                self._begun[piece.smmu] = (line, piece.announces)
            elif piece.words:
                begun, _number = self._begun.pop(piece.smmu)
                self._begin(begun, of_words(piece.words, piece.smmu), from_words=True)
            return True
        return self._decoded(line) or self._access(text) or self._alone(line)

    def take(self) -> list[Pending]:
        """Return the events that are complete."""
        done, self._done = self._done, []
        return done

    def end(self) -> list[Pending]:
        """Return the rest."""
        for smmu in list(self._begun):
            self._give_up(smmu)
        self._done += self._pending.values()
        self._pending.clear()
        return self.take()

    def _give_up(self, smmu: str) -> None:
        """Give out an event that was announced and of which the words did not come."""
        begun = self._begun.pop(smmu, None)
        if begun is not None:
            line, number = begun
            self._done.append(Pending(line, Logged(number, None, smmu), True))

    def _begin(self, line: Line, logged: Logged, *, from_words: bool) -> None:
        before = self._pending.pop(logged.smmu, None)
        if before is not None:
            self._done.append(before)
        self._pending[logged.smmu] = Pending(line, logged, from_words)

    def _decoded(self, line: Line) -> bool:
        found = _DECODED.search(line.text)
        if found is None:
            return False
        said = _said(found)
        self._begun.pop(said.smmu, None)  # says more than the line that announced it
        before = self._pending.get(said.smmu)
        if before is not None and before.from_words and _same(before.logged, said):
            before.logged = replace(before.logged, client=said.client)
        else:
            self._begin(line, said, from_words=False)
        return True

    def _access(self, text: str) -> bool:
        found = _ACCESS.search(text)
        if found is None:
            return False
        pending = self._pending.get(found["smmu"])
        if pending is None or pending.logged.event is None:
            return False
        event = pending.logged.event
        if not pending.from_words and event.kind in _NEED_STAGE:
            stage = int(found["stage"])
            walk = stage == 2 and found["kind"].startswith("Stage 1")
            ipa = event.ipa
            if stage == 1:
                ipa = None
            elif ipa is not None and not walk:
                ipa = Ipa(ipa | event.iova & 0xFFF)
            event = replace(event, stage=stage, ipa=ipa, table_walk=walk)
        pending.logged = replace(pending.logged, event=event, access=found["access"])
        return True

    def _alone(self, line: Line) -> bool:
        """Take events that are one line: words, a trace of QEMU, a count."""
        suppressed = _SUPPRESSED.search(line.text)
        if suppressed is not None:
            self.suppressed += int(suppressed[1])
            return True
        bare = _BARE.fullmatch(line.text)
        if bare is not None:
            self._done.append(Pending(line, of_words([int(w, 16) for w in bare.groups()]), True))
            return True
        trace = _TRACE.search(line.text)
        if trace is None or trace["name"] not in EventKind.__members__:
            return False
        kind = EventKind[trace["name"]]
        stage = 1 if kind in _NEED_STAGE else 0
        event = SmmuEvent(kind, stage, StreamId(int(trace["sid"], 16)), Iova(0))
        self._done.append(Pending(line, Logged(kind, event), False))
        return True


def of_words(words: Sequence[int], smmu: str = "") -> Logged:
    """Return the event of four words."""
    event = None
    with suppress(ValueError):
        event = decode(words[:WORDS])
    return Logged(words[0] & 0xFF, event, smmu)


def _said(found: re.Match[str]) -> Logged:
    """Return the event that a line says in words; its stage is in the line after it."""
    client = None
    with suppress(InputError):
        client = PciAddress.parse(found["client"])
    kind = EventKind.__members__.get(found["name"])
    event = None
    if kind is not None:
        stage, ipa = 0, None
        if kind in _NEED_STAGE:
            # Until the next line tells: stage 2 has an IPA, which may be 0, though.
            ipa = Ipa(int(found["ipa"] or "0", 16)) or None
            stage = 1 if ipa is None else 2
        iova = Iova(int(found["iova"] or "0", 16))
        event = SmmuEvent(kind, stage, StreamId(int(found["sid"], 16)), iova, ipa)
    return Logged(0 if kind is None else kind, event, found["smmu"], client)


def _same(words: Logged, said: Logged) -> bool:
    first, second = words.event, said.event
    if first is None or second is None:
        return first is second
    return (first.kind, first.stream_id) == (second.kind, second.stream_id)
