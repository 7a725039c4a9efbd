"""Explanations of a log as a page, and as rows for CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm_msi.pages.blocks import (
    Code,
    Filter,
    Heading,
    Items,
    Page,
    Section,
    Table,
    Terms,
    Text,
    Tone,
    cells,
)
from vmm_msi.report.explain import device_text, remaining_lines, remedy_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmm_msi.explain.explanation import ExplainedLine, ExplainedText
    from vmm_msi.pages.blocks import Block, Cell

_COLUMNS: Final = (
    "line",
    "count",
    "id",
    "program",
    "device",
    "stage",
    "iova",
    "ipa",
    "means",
    "missing",
    "why",
    "remedies",
    "text",
)


def to_page(report: ExplainedText, provenance: Mapping[str, str]) -> Page:
    """Return the explanations as a page.

    :param provenance: host, guest, version, date and command line.
    """
    return Page(
        "Explained log",
        tuple(_blocks(report)),
        provenance,
        Table(
            "Explanations",
            _COLUMNS,
            tuple(map(_row, report.lines)),
        ),
    )


def _row(explained: ExplainedLine) -> tuple[Cell, ...]:
    explanation = explained.explanation
    return cells(
        explained.line,
        explained.count,
        explanation.id,
        explanation.program,
        device_text(explanation),
        *("" if value is None else value for value in (explanation.stage, explanation.iova)),
        "" if explanation.ipa is None else explanation.ipa,
        explanation.what,
        explanation.missing,
        explanation.why,
        "; ".join(map(remedy_text, explanation.remedies)),
        explained.text,
    )


def _blocks(report: ExplainedText) -> Iterator[Block]:
    programs = {explained.explanation.program: None for explained in report.lines}
    if len(report.lines) > 1:
        yield Filter("Explanations", tuple(map(str, programs)))
    yield from map(_section, report.lines)
    rest = tuple(remaining_lines(report))
    if rest:
        yield Heading("Other lines")
        yield Items(rest)


def _section(explained: ExplainedLine) -> Section:
    more = f", and {explained.count - 1} more like it" if explained.count > 1 else ""
    return Section(
        f"Line {explained.line}{more}: {explained.explanation.id}",
        tuple(_details(explained)),
        f"line-{explained.line}",
        marks=(str(explained.explanation.program),),
    )


def _details(explained: ExplainedLine) -> Iterator[Block]:
    explanation = explained.explanation
    yield Code((explained.text,), "log line")
    yield Text(explanation.what)
    iova = "" if explanation.iova is None else f"{explanation.iova}: {explanation.iova_is}"
    ipa = "" if explanation.ipa is None else f"{explanation.ipa}: {explanation.ipa_is}"
    terms = {
        "Device": device_text(explanation),
        "Stage": "" if explanation.stage is None else str(explanation.stage),
        "IOVA": iova,
        "IPA": ipa,
        "Missing": explanation.missing,
    }
    rows = tuple((name, text) for name, text in terms.items() if text)
    if rows:
        yield Terms(rows)
    if explanation.why:
        yield Text(f"Why: {explanation.why}")
    for remedy in explanation.remedies:
        yield Text(remedy_text(remedy), copy="remedy")
    if explanation.otherwise:
        yield Text("Other causes:")
        yield Items(
            tuple(
                "; ".join((f"{reading.when}: {reading.why}", *reading.remedies))
                for reading in explanation.otherwise
            )
        )
    if explanation.findings:
        commands = (f"vmm-msi doctor --explain {name}" for name in explanation.findings)
        yield Text(f"More: {', '.join(commands)}", Tone.QUIET)
    if explanation.source:
        yield Text(f"Source: {explanation.source}", Tone.QUIET)
