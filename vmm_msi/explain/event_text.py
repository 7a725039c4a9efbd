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

_SMMU = r"arm-smmu-v3\s{1,8}(?P<smmu>\S{1,64}):\s{0,16}"
_SID = r"(?:0[xX])?(?P<sid>[0-9a-fA-F]{1,8})"
#: White space may be a line feed, where a mailer wrapped the line, or lost, where a terminal did.
_DECODED = re.compile(
    rf"{_SMMU}event:\s{{0,8}}(?P<name>[A-Z_]{{1,32}})\s{{0,8}}client:\s{{0,8}}"
    rf"(?P<client>\(unassigned\s{{0,8}}sid\)|\S{{1,64}}?)\s{{0,8}}sid:\s{{0,8}}{_SID}\s{{0,8}}"
    r"ssid:\s{0,8}(?:0[xX])?[0-9a-fA-F]{1,8}"
    r"(?:\s{0,8}iova:\s{0,8}(?:0[xX])?(?P<iova>[0-9a-fA-F]{1,16})\s{0,8}"
    r"ipa:\s{0,8}(?:0[xX])?(?P<ipa>[0-9a-fA-F]{1,16})|\s{0,8}fetch_addr:\s{0,8}\w{1,18})?"
    r"(?!\w)"
)
_ACCESS = re.compile(
    rf"{_SMMU}(?P<access>(?:un)?priv\s{{0,8}}(?:inst|data)\s{{0,8}}(?:read|write))\s{{0,8}}"
    r"s(?P<stage>[12])\s{0,8}[\"“](?P<kind>[^\"”]{1,64})[\"”]"
    r"(?:\s{0,8}ttd_(?:read|write))?(?:\s{0,8}stall)?(?:\s{0,8}stag:(?:\s{0,8}\w{1,18})?)?"
)
#: The beginnings of the driver's lines about an event.
_EVENT = re.compile(
    r"arm-smmu-v3\s{1,8}\S{1,64}:\s{0,8}"
    r"(?:event 0[xX]|event: [A-Z]|(?:un)?priv (?:inst|data) |(?:0[xX])?[0-9a-fA-F]{16}\b)"
)
_TRACE = re.compile(
    r"smmuv3_(?:propagate|record)_event (?P<name>[A-Z_]{1,32}) "
    r"sid=(?:0[xX])?(?P<sid>[0-9a-fA-F]{1,8})"
)
_WORD = r"(0[xX][0-9a-fA-F]{1,16}|[0-9a-fA-F]{16})"
_BARE = re.compile(r"[\s,]{1,16}".join([_WORD] * WORDS) + r"[ \t,]{0,16}(?=\n|$)")
_SUPPRESSED = re.compile(
    r"arm_smmu_(?:evtq_thread|dump_event|handle_event|handle_evt): (\d{1,9}) callbacks suppressed"
)
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

    def line(self, line: Line, text: str) -> int:
        """Parse a message of the kernel.

        :param text: the line and those after it that may continue it, separated by line feeds.
        :return: how many characters of the text belong to an event; 0 for another line.
        """
        piece = self._reader.line(text)
        if piece is None:
            return self._decoded(line, text) or self._access(text) or self._single_line(line, text)
        if piece.announces is not None:
            self._drop_words(piece.smmu)
            self._announced[piece.smmu] = (line, piece.announces)
        if piece.words:
            self._words(line, of_words(piece.words, piece.smmu))
        return piece.end

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

    def _words(self, line: Line, logged: Logged) -> None:
        """Begin an event with its words, unless a line between them decoded it already."""
        announced = self._announced.pop(logged.smmu, None)
        pending = self._pending.get(logged.smmu)
        if announced is not None:
            self._begin(announced[0], logged, from_words=True)
        elif pending is None or not _same(pending.logged, logged):
            self._begin(line, logged, from_words=True)

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

    def _decoded(self, line: Line, text: str) -> int:
        match = _DECODED.match(text)
        if match is None:
            return 0
        decoded = _from_decoded(match)
        self._announced.pop(decoded.smmu, None)  # the decoded line has more than the announcement
        pending = self._pending.get(decoded.smmu)
        if pending is not None and pending.from_words and _same(pending.logged, decoded):
            pending.logged = replace(pending.logged, client=decoded.client)
        else:
            self._begin(line, decoded, from_words=False)
        return match.end()

    def _access(self, text: str) -> int:
        match = _ACCESS.match(text)
        pending = None if match is None else self._pending.get(match["smmu"])
        if match is None or pending is None or pending.logged.event is None:
            return 0
        event = pending.logged.event
        if not pending.from_words and event.kind in _NEED_STAGE:
            stage = int(match["stage"])
            walk = stage == 2 and " ".join(match["kind"].split()).startswith("Stage 1")
            ipa = event.ipa
            if stage == 1:
                ipa = None
            elif ipa is not None and not walk:
                ipa = Ipa(ipa | event.iova & 0xFFF)
            event = replace(event, stage=stage, ipa=ipa, table_walk=walk)
        access = " ".join(match["access"].split())
        pending.logged = replace(pending.logged, event=event, access=access)
        return match.end()

    def _single_line(self, line: Line, text: str) -> int:
        """Parse a line that is an event by itself: words, a trace of QEMU, a count."""
        suppressed = _SUPPRESSED.match(text)
        if suppressed is not None:
            self.suppressed += int(suppressed[1])
            return suppressed.end()
        bare = _BARE.match(text)
        if bare is not None:
            logged = of_words([int(word, 16) for word in bare.groups()])
            self._complete.append(Pending(line, logged, True))
            return bare.end()
        trace = _TRACE.search(line.text)
        if trace is None or trace["name"] not in EventKind.__members__:
            return 0
        kind = EventKind[trace["name"]]
        stage = 1 if kind in _NEED_STAGE else 0
        event = SmmuEvent(kind, stage, StreamId(int(trace["sid"], 16)), Iova(0))
        self._complete.append(Pending(line, Logged(kind, event), False))
        return len(line.text)


def begins_like_event(text: str) -> int | None:
    """Return where a text has the beginning of a line about an event; None if nowhere."""
    match = _EVENT.search(text)
    return None if match is None else match.start()


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
    if kind is not None and (match["iova"] or kind not in _NEED_STAGE):
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
