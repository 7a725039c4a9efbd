"""Findings of the doctor as a page: HTML with a filter, Markdown, and rows for CSV."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from vmm_msi.doctor import pages
from vmm_msi.doctor.finding import Severity
from vmm_msi.errors import UsageError
from vmm_msi.pages.blocks import Cell, Filter, Page, Section, Table, Text, Tone, cells
from vmm_msi.quantity import quantity
from vmm_msi.report.doctor import SEVERITY_TONES, alike_findings, summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from vmm_msi.doctor.case import Case
    from vmm_msi.doctor.finding import Finding
    from vmm_msi.pages.blocks import Block

#: Subjects that are named beside a finding; all of them are in its table of evidence.
_MAX_SUBJECTS: Final = 4
#: Rows of evidence that are shown without opening them.
_MAX_ROWS: Final = 12


def to_page(
    case: Case,
    domain: str | None,
    findings: Sequence[Finding],
    provenance: Mapping[str, str],
    ignored: Sequence[Finding] = (),
) -> Page:
    """Return the findings as a page.

    :param domain: the guest as the caller named it.
    :param provenance: what the caller adds to it: version, date and command line.
    :param ignored: findings that are only counted.
    """
    guest = "" if domain is None else f", guest {PurePath(domain).name}"
    return Page(
        f"Check of {PurePath(case.host.source).name}{guest}",
        tuple(_blocks(findings, ignored)),
        {**_examined(case, domain), **provenance},
        Table(
            "Findings",
            ("severity", "id", "subject", "evidence", "effect", "remedy"),
            tuple(map(_row, findings)),
        ),
    )


def _examined(case: Case, domain: str | None) -> dict[str, str]:
    """Return what was examined, without what is unknown."""
    software = case.software
    facts = {
        "host": case.host.source,
        "guest": domain,
        "devices": _named(list(map(str, case.devices))) or None,
        "kernel": case.kernel.release or ("not checked" if case.tree is None else None),
        "libvirt": software.libvirt and ".".join(map(str, software.libvirt)),
        "QEMU": software.qemu and ".".join(map(str, software.qemu)),
        "strategy": case.choice and str(case.choice),
        "configuration": case.config and case.config.path and str(case.config.path),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _row(finding: Finding) -> tuple[Cell, ...]:
    return cells(
        finding.severity,
        finding.id,
        finding.subject,
        "; ".join(map(str, finding.evidence)),
        finding.consequence,
        finding.remedy,
    )


def _blocks(findings: Sequence[Finding], ignored: Sequence[Finding]) -> Iterator[Block]:
    worst = SEVERITY_TONES[findings[0].severity] if findings else Tone.GOOD
    counts = summary(findings, ignored)
    yield Text(f"{counts[0].upper()}{counts[1:]}.", worst)
    if not findings:
        return
    severities = {finding.severity for finding in findings}
    yield Filter(
        "Findings", tuple(str(severity) for severity in Severity if severity in severities)
    )
    numbers: dict[str, int] = {}
    for alike in alike_findings(findings):
        name = alike[0].id
        numbers[name] = numbers.get(name, 0) + 1
        yield _section(alike, name if numbers[name] == 1 else f"{name}-{numbers[name]}")


def _section(alike: Sequence[Finding], fragment: str) -> Section:
    first = alike[0]
    return Section(
        f"{_label(first.severity)}: {_title(first.id)}",
        tuple(_details(alike)),
        fragment,
        SEVERITY_TONES[first.severity],
        (str(first.severity),),
    )


def _title(name: str) -> str:
    try:
        return pages.title(name)
    except UsageError:
        return name  # A finding of a plugin has no page here.


def _label(severity: Severity) -> str:
    return "Not checked" if severity is Severity.UNKNOWN else severity.capitalize()


def _details(alike: Sequence[Finding]) -> Iterator[Block]:
    first, others = alike[0], len(alike) - 1
    subjects = [finding.subject for finding in alike]
    yield Text(f"{first.id}: {_named(subjects)}", Tone.QUIET)
    same = f" The same for {quantity(others, 'other')}." if others else ""
    yield Text(f"{first.consequence}{same}")
    rows = [row for same in _with_equal_evidence(alike) for row in _evidence_rows(same)]
    if rows:
        # The only subject is above.
        first_column = 0 if others else 1
        head = ("subject", "where", "value")[first_column:]
        table = Table("Evidence", head, tuple(row[first_column:] for row in rows))
        folded = len(rows) > _MAX_ROWS
        yield Section(f"Evidence ({len(rows)})", (table,), folded=True) if folded else table
    if len(subjects) > _MAX_SUBJECTS:
        listed = Text(", ".join(subjects))
        yield Section(f"All {len(subjects):,} subjects", (listed,), folded=True)
    yield Text(first.remedy, copy="remedy")
    yield Text(f"More: vmm-msi doctor --explain {first.id}", Tone.QUIET)


def _with_equal_evidence(alike: Sequence[Finding]) -> Iterable[Sequence[Finding]]:
    """Group findings whose evidence differs only in their subjects; a few are not grouped."""
    if len(alike) <= _MAX_ROWS:
        return [[finding] for finding in alike]
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in alike:
        key = (text.replace(finding.subject, "\0") for text in map(str, finding.evidence))
        groups.setdefault(tuple(key), []).append(finding)
    return groups.values()


def _evidence_rows(same: Sequence[Finding]) -> Iterator[tuple[Cell, ...]]:
    first = same[0]
    subjects = [finding.subject for finding in same]
    for evidence in first.evidence:
        texts = [evidence.where, evidence.what]
        if len(same) > 1:
            texts = [text.replace(first.subject, "…") for text in texts]
        yield cells(_named(subjects), *texts)


def _named(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_SUBJECTS
    return ", ".join(names[:_MAX_SUBJECTS]) + (f" and {rest:,} more" if rest > 0 else "")
