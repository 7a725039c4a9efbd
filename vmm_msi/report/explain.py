"""Explanations as lines for people and as a document for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm_msi.quantity import quantity
from vmm_msi.report.columns import prose
from vmm_msi.terminal import WIDTH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.explain.explanation import (
        ExplainedLine,
        ExplainedText,
        Explanation,
        Remedy,
        Subject,
    )
    from vmm_msi.report.documents import ExplainDocument, ExplanationJson

#: Version of the JSON document; it grows when a key changes its meaning or is removed.
SCHEMA: Final = 1
#: Columns of the names.
_NAMES = 9


def to_lines(report: ExplainedText, width: int = WIDTH) -> Iterator[str]:
    """Yield a paragraph per explanation, then counts of the other lines."""
    for explained in report.lines:
        yield from _paragraph(explained, width)
        yield ""
    yield from remaining_lines(report)


def to_json(report: ExplainedText) -> ExplainDocument:
    """Return the document: addresses and StreamIDs are hex strings."""
    return {
        "schema": SCHEMA,
        "explanations": [_document(explained) for explained in report.lines],
        "lines_not_recognised": report.unrecognised,
        "explanations_left_out": report.left_out,
        "events_not_logged": report.suppressed,
        "notes": list(report.notes),
    }


def _paragraph(explained: ExplainedLine, width: int) -> Iterator[str]:
    explanation = explained.explanation
    more = f" (and {explained.count - 1} more like it)" if explained.count > 1 else ""
    yield f"line {explained.line}: {explained.text}{more}"
    yield from _row("id", explanation.id, width)
    yield from _row("means", explanation.what, width)
    yield from _row("device", device_text(explanation), width)
    if explanation.stage is not None:
        yield from _row("stage", str(explanation.stage), width)
    if explanation.iova is not None:
        yield from _row("IOVA", f"{explanation.iova}: {explanation.iova_is}", width)
    if explanation.ipa is not None:
        yield from _row("IPA", f"{explanation.ipa}: {explanation.ipa_is}", width)
    yield from _row("missing", explanation.missing, width)
    yield from _row("why", explanation.why, width)
    for remedy in explanation.remedies:
        yield from _row("remedy", remedy_text(remedy), width)
    for reading in explanation.otherwise:
        remedies = "".join(f"; {remedy}" for remedy in reading.remedies)
        yield from _row("or", f"{reading.when}: {reading.why}{remedies}", width)
    if explanation.findings:
        first, *others = explanation.findings
        also = f"; also {', '.join(others)}" if others else ""
        yield from _row("see", f"vmm-msi doctor --explain {first}{also}", width)
    yield from _row("source", explanation.source, width)


def _row(name: str, value: str, width: int) -> Iterator[str]:
    if value:
        yield from prose(value, width, f"  {name.ljust(_NAMES)}")


def device_text(explanation: Explanation) -> str:
    """Return the devices that an explanation may be about, with their StreamID; empty if none."""
    names = " or ".join(map(_subject, explanation.devices))
    stream = "" if explanation.stream is None else f"StreamID {explanation.stream}"
    if not names:
        return stream and f"{stream}, of an unknown device"
    return f"{names}; {stream}" if stream else names


def _subject(subject: Subject) -> str:
    name = str(subject.address or "")
    if subject.guest_address is not None:
        in_guest = f"{subject.guest_address} in the guest"
        name = f"{in_guest}, {name} on the host" if name else in_guest
    return f"{name} ({subject.note})" if subject.note else name


def remedy_text(remedy: Remedy) -> str:
    """Return a remedy with the strategy and the change of the guest that it consists of."""
    text = remedy.what
    if remedy.strategy and f"--strategy {remedy.strategy}" not in text:
        text = f"{remedy.strategy}: {text}"
    return f"{text}; {remedy.change}" if remedy.change else text


def remaining_lines(report: ExplainedText) -> Iterator[str]:
    """Yield counts of the lines without an explanation, and the notes."""
    if not report.lines:
        yield "no line was recognised"
    if report.suppressed:
        yield f"the kernel counted {quantity(report.suppressed, 'more event')} without logging them"
    if report.left_out:
        yield f"{quantity(report.left_out, 'more line')} recognised and not shown"
    if report.unrecognised:
        yield f"{quantity(report.unrecognised, 'line')} not recognised"
    for note in report.notes:
        yield f"note: {note}"


def _document(explained: ExplainedLine) -> ExplanationJson:
    explanation = explained.explanation
    return {
        "id": explanation.id,
        "program": explanation.program,
        "line": explained.line,
        "text": explained.text,
        "count": explained.count,
        "what": explanation.what,
        "devices": [
            {
                "address": _text(subject.address),
                "guest_address": _text(subject.guest_address),
                "note": subject.note,
            }
            for subject in explanation.devices
        ],
        "stream_id": _text(explanation.stream),
        "stage": explanation.stage,
        "iova": _text(explanation.iova),
        "iova_is": explanation.iova_is,
        "ipa": _text(explanation.ipa),
        "ipa_is": explanation.ipa_is,
        "missing": explanation.missing,
        "why": explanation.why,
        "mends": [
            {
                "what": remedy.what,
                "strategy": remedy.strategy or None,
                "change": remedy.change or None,
            }
            for remedy in explanation.remedies
        ],
        "otherwise": [
            {"if": reading.when, "why": reading.why, "remedies": list(reading.remedies)}
            for reading in explanation.otherwise
        ],
        "findings": list(explanation.findings),
        "source": explanation.source,
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)
