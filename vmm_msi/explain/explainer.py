"""From a text to what its lines mean."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.errors import InputError
from vmm_msi.explain import known_texts, log_lines
from vmm_msi.explain.address_kinds import at_iova
from vmm_msi.explain.event_text import EventText
from vmm_msi.explain.explanation import ExplainedLine, ExplainedText, Explanation, Remedy, Subject
from vmm_msi.explain.faults import explain_event
from vmm_msi.explain.related_findings import OF_TEXT
from vmm_msi.types import Iova, PciAddress, StreamId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_msi.explain.event_text import Pending
    from vmm_msi.explain.faults import Logged
    from vmm_msi.explain.known_text import Text
    from vmm_msi.explain.log_lines import Line
    from vmm_msi.explain.remedies import StrategyRemedies
    from vmm_msi.explain.situation import Situation

#: Different explanations that are kept.
MAX_EXPLAINED = 200
#: Different events and lines that are looked at for them.
_MAX_KNOWN = 5 * MAX_EXPLAINED
#: Characters of a line that are shown.
_SHOWN = 300

_ADDRESS = r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]"
#: Where programs name the device that they talk of, the surest first.
_DEVICE = tuple(
    re.compile(pattern)
    for pattern in (
        rf"vfio(?:-pci)? ({_ADDRESS}): ",
        rf"[Dd]evice ({_ADDRESS})\b",
        rf'"?host"?[:=]"?({_ADDRESS})\b',
        rf"\b({_ADDRESS})\b",
    )
)


def explain(
    text: str,
    situation: Situation,
    strategies: StrategyRemedies | None = None,
    notes: Sequence[str] = (),
) -> ExplainedText:
    """Return what the lines of a text mean.

    :param strategies: names the strategies that would deliver; None to name none.
    :param notes: what is known to be missing already.
    """
    events = EventText()
    meanings = _Meanings(text, situation, strategies)
    for line in log_lines.lines(text):
        if not events.line(line):
            meanings.line(line)
            continue
        for pending in events.take():
            meanings.event(pending)
    for pending in events.end():
        meanings.event(pending)
    told = strategies.note if strategies is not None else ""
    return ExplainedText(
        lines=meanings.sorted(),
        unrecognised=meanings.unrecognised,
        left_out=meanings.left_out,
        suppressed=events.suppressed,
        notes=(*notes, *([told] if told else [])),
    )


class _Meanings:
    """Explanations, each once, with where it was first and how often.

    What was explained is not looked at again, and of too many different events and lines no more
    is looked at than is shown.

    :ivar unrecognised: lines in which nothing was recognised.
    :ivar left_out: what is not shown.
    """

    def __init__(
        self, text: str, situation: Situation, strategies: StrategyRemedies | None
    ) -> None:
        self._forms = [form for form in known_texts.forms() if form.key in text]
        self._situation = situation
        self._strategies = strategies
        self._known: dict[Logged | str, Explanation] = {}
        self._found: dict[Explanation, ExplainedLine] = {}
        self.unrecognised = 0
        self.left_out = 0

    def event(self, pending: Pending) -> None:
        """Take an event."""
        logged = pending.logged
        if logged not in self._known and not self._is_full():
            self._known[logged] = explain_event(logged, self._situation, self._strategies)
        self._add(pending.line, self._known.get(logged))

    def line(self, line: Line) -> None:
        """Take a line that is of no event."""
        found = self._look(line.text)
        if found is None:
            self.unrecognised += 1
            return
        text, match = found
        if line.text not in self._known and not self._is_full():
            self._known[line.text] = _of_text(
                text, match, line.text, self._situation, self._strategies
            )
        self._add(line, self._known.get(line.text))

    def sorted(self) -> tuple[ExplainedLine, ...]:
        """Return what was found, in the order of the lines."""
        return tuple(sorted(self._found.values(), key=lambda found: found.line))

    def _is_full(self) -> bool:
        return len(self._known) >= _MAX_KNOWN or len(self._found) >= MAX_EXPLAINED

    def _look(self, line: str) -> tuple[Text, re.Match[str]] | None:
        for form in self._forms:
            found = form.pattern.search(line) if form.key in line else None
            if found is not None:
                return form.text, found
        return None

    def _add(self, line: Line, explanation: Explanation | None) -> None:
        if explanation is None:
            self.left_out += 1
            return
        before = self._found.get(explanation)
        if before is None:
            text = " ".join(line.text.split())[:_SHOWN]
            self._found[explanation] = ExplainedLine(explanation, line.number, text)
            return
        first = min(before.line, line.number)
        self._found[explanation] = replace(before, line=first, count=before.count + 1)


def _of_text(
    text: Text,
    found: re.Match[str],
    line: str,
    situation: Situation,
    strategies: StrategyRemedies | None,
) -> Explanation:
    values = [value.strip() for value in found.groups("")]
    iova = None if text.iova is None else Iova(int(values[text.iova], 16))
    stream = (
        None if text.stream is None else StreamId(int(values[text.stream], 16) & text.stream_mask)
    )
    subjects = _named(line, situation)
    if stream is not None and not subjects:
        subjects = situation.by_stream(stream, "")
    device = subjects[0].address if len(subjects) == 1 else None
    names = {
        "guest": situation.guest_name if situation.guest is not None else "GUEST",
        "device": str(device or "DEVICE"),
    }
    rest = line[found.start() :]
    why = next((meaning for words, meaning in text.cases.items() if words in rest), text.why)
    remedies: Sequence[Remedy] = [Remedy(each.format(*values, **names)) for each in text.remedies]
    if text.strategies and strategies is not None:
        remedies = [*remedies, *strategies.remedies(device, ignores_rmr=False)]
    at = None
    if iova is not None:
        at = at_iova(iova, situation.host_device(device), situation)
    return Explanation(
        id=text.id,
        program=text.program,
        what=text.what.format(*values, **names),
        devices=subjects,
        stream=stream,
        stage=text.stage,
        iova=iova,
        iova_is="" if at is None else at.words,
        missing=text.missing,
        why=why,
        remedies=tuple(remedies),
        findings=OF_TEXT.get(text.id, ()),
        source=text.source,
    )


def _named(line: str, situation: Situation) -> tuple[Subject, ...]:
    """Return the device that a line names."""
    for pattern in _DEVICE:
        found = pattern.search(line)
        if found is not None:
            with suppress(InputError):
                address = PciAddress.parse(found[1])
                if situation.in_guest:
                    return (situation.by_guest_address(address),)
                return (situation.subject(address),)
    return ()
