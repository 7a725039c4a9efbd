"""From a text to what its lines mean."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from vmm_msi.errors import InputError
from vmm_msi.explain import reading, tables
from vmm_msi.explain.eventtext import EventText
from vmm_msi.explain.explanation import Explanation, Found, Mend, Report, Subject
from vmm_msi.explain.faults import explain_event
from vmm_msi.explain.places import at_iova
from vmm_msi.model import Iova, PciAddress, StreamId

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_msi.explain.mends import Strategies
    from vmm_msi.explain.reading import Line
    from vmm_msi.explain.situation import Situation
    from vmm_msi.explain.text import Form, Text

#: Different explanations that are kept.
MAX_FOUND = 200
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
    strategies: Strategies | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """Return what the lines of a text mean.

    :param strategies: names the strategies that would deliver; None to name none.
    :param notes: what is known to be missing already.
    """
    events = EventText()
    collected = _Collected()
    forms = [form for form in tables.forms() if form.key in text]
    unknown = 0
    for line in reading.lines(text):
        if events.line(line):
            for pending in events.take():
                collected.add(pending.line, explain_event(pending.logged, situation, strategies))
            continue
        said = _say(line, forms, situation, strategies)
        if said is None:
            unknown += 1
        else:
            collected.add(line, said)
    for pending in events.end():
        collected.add(pending.line, explain_event(pending.logged, situation, strategies))
    return Report(
        found=collected.sorted(),
        unknown=unknown,
        left_out=collected.left_out,
        suppressed=events.suppressed,
        notes=(*notes, *([strategies.note] if strategies is not None and strategies.note else [])),
    )


class _Collected:
    """Explanations, each once, with where it was first and how often."""

    def __init__(self) -> None:
        self._found: dict[Explanation, Found] = {}
        self.left_out = 0

    def add(self, line: Line, explanation: Explanation) -> None:
        before = self._found.get(explanation)
        if before is None and len(self._found) == MAX_FOUND:
            self.left_out += 1
        elif before is None:
            text = " ".join(line.text.split())[:_SHOWN]
            self._found[explanation] = Found(explanation, line.number, text)
        else:
            self._found[explanation] = Found(
                explanation, min(before.line, line.number), before.text, before.count + 1
            )

    def sorted(self) -> tuple[Found, ...]:
        return tuple(sorted(self._found.values(), key=lambda found: found.line))


def _say(
    line: Line, forms: Iterable[Form], situation: Situation, strategies: Strategies | None
) -> Explanation | None:
    """Return what a line means by the tables, None where it is in none."""
    for form in forms:
        if form.key not in line.text:
            continue
        found = form.pattern.search(line.text)
        if found is not None:
            return _of_text(form.text, found, line.text, situation, strategies)
    return None


def _of_text(
    text: Text,
    found: re.Match[str],
    line: str,
    situation: Situation,
    strategies: Strategies | None,
) -> Explanation:
    values = [value.strip() for value in found.groups("")]
    iova = None if text.iova is None else Iova(int(values[text.iova], 16))
    stream = None if text.stream is None else StreamId(int(values[text.stream], 16) & 0xFFFF)
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
    mends: Sequence[Mend] = [Mend(each.format(*values, **names)) for each in text.mends]
    if text.strategies and strategies is not None:
        mends = [*mends, *strategies.mends(device, ignores_rmr=False)]
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
        mends=tuple(mends),
        findings=text.findings,
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
