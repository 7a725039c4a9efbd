"""What ``explain`` found, as lines for people and as a document for programs."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from vmm_msi.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.explain.explanation import (
        ExplainedLine,
        ExplainedText,
        Explanation,
        Remedy,
        Subject,
    )

#: Version of the JSON form; it goes up when a key changes its meaning or goes away.
SCHEMA = 1
#: Columns of the names, and of all.
_NAMES = 9
_WIDTH = 100


def to_lines(report: ExplainedText) -> Iterator[str]:
    """Yield a paragraph per explanation, then what was not explained."""
    for found in report.lines:
        yield from _paragraph(found)
        yield ""
    yield from _rest(report)


def to_json(report: ExplainedText) -> dict[str, object]:
    """Return the document: addresses and StreamIDs are hex strings."""
    return {
        "schema": SCHEMA,
        "explanations": [_document(found) for found in report.lines],
        "lines_not_recognised": report.unrecognised,
        "explanations_left_out": report.left_out,
        "events_not_logged": report.suppressed,
        "notes": list(report.notes),
    }


def _paragraph(found: ExplainedLine) -> Iterator[str]:
    said = found.explanation
    times = f" (and {found.count - 1} more like it)" if found.count > 1 else ""
    yield f"line {found.line}: {found.text}{times}"
    yield from _row("id", said.id)
    yield from _row("says", said.what)
    yield from _row("device", _devices(said))
    if said.stage is not None:
        yield from _row("stage", str(said.stage))
    yield from _row("IOVA", "" if said.iova is None else f"{said.iova}: {said.iova_is}")
    yield from _row("IPA", "" if said.ipa is None else f"{said.ipa}: {said.ipa_is}")
    yield from _row("missing", said.missing)
    yield from _row("why", said.why)
    for remedy in said.remedies:
        yield from _row("remedy", _remedy(remedy))
    if said.findings:
        first, *others = said.findings
        also = f"; also {', '.join(others)}" if others else ""
        yield from _row("see", f"vmm-msi doctor --explain {first}{also}")
    yield from _row("source", said.source)


def _row(name: str, value: str) -> Iterator[str]:
    if value:
        head = f"  {name.ljust(_NAMES)}"
        yield from textwrap.wrap(
            printable(value),
            _WIDTH,
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_long_words=False,
            break_on_hyphens=False,
        )


def _devices(said: Explanation) -> str:
    names = " or ".join(map(_subject, said.devices))
    stream = "" if said.stream is None else f"StreamID {said.stream}"
    if not names:
        return stream and f"{stream}, of a device that is not known"
    return f"{names}; {stream}" if stream else names


def _subject(subject: Subject) -> str:
    name = str(subject.address or "")
    if subject.guest_address is not None:
        there = f"{subject.guest_address} in the guest"
        name = f"{there}, {name} on the host" if name else there
    return f"{name} ({subject.note})" if subject.note else name


def _remedy(remedy: Remedy) -> str:
    words = remedy.what
    if remedy.strategy not in words:
        words = f"{remedy.strategy}: {words}"
    return f"{words}; {remedy.change}" if remedy.change else words


def _rest(report: ExplainedText) -> Iterator[str]:
    if not report.lines:
        yield "nothing of it was recognised"
    if report.suppressed:
        yield f"{report.suppressed} more events were counted by the kernel and not logged"
    if report.left_out:
        yield f"{report.left_out} more lines were recognised and are not shown"
    if report.unrecognised:
        lines = "1 line was" if report.unrecognised == 1 else f"{report.unrecognised} lines were"
        yield f"{lines} not recognised"
    for note in report.notes:
        yield f"note: {note}"


def _document(found: ExplainedLine) -> dict[str, object]:
    said = found.explanation
    return {
        "id": said.id,
        "program": said.program,
        "line": found.line,
        "text": found.text,
        "count": found.count,
        "what": said.what,
        "devices": [
            {
                "address": None if each.address is None else str(each.address),
                "guest_address": None if each.guest_address is None else str(each.guest_address),
                "note": each.note,
            }
            for each in said.devices
        ],
        "stream_id": None if said.stream is None else str(said.stream),
        "stage": said.stage,
        "iova": None if said.iova is None else str(said.iova),
        "iova_is": said.iova_is,
        "ipa": None if said.ipa is None else str(said.ipa),
        "ipa_is": said.ipa_is,
        "missing": said.missing,
        "why": said.why,
        "mends": [
            {"what": each.what, "strategy": each.strategy or None, "change": each.change or None}
            for each in said.remedies
        ],
        "findings": list(said.findings),
        "source": said.source,
    }
