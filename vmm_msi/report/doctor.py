"""Findings of the doctor as text and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from vmm_msi.doctor.finding import Severity
from vmm_msi.quantity import quantity
from vmm_msi.report.columns import prose
from vmm_msi.terminal import WIDTH, Line, Tone

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_msi.doctor.case import Case
    from vmm_msi.doctor.finding import Finding
    from vmm_msi.report.documents import DoctorDocument, FindingJson

#: Version of the JSON form, incremented when a key changes its meaning or is removed.
SCHEMA: Final = 1

#: What a severity means for the reader.
SEVERITY_TONES: Final = {
    Severity.ERROR: Tone.BAD,
    Severity.WARNING: Tone.WARNING,
    Severity.NOTE: Tone.QUIET,
    Severity.UNKNOWN: Tone.WARNING,
}
#: Subjects in the head of a block, and lines of evidence in it; the rest are counted.
_MAX_SUBJECTS = 4
_MAX_EVIDENCE = 6

_COUNTED = {
    Severity.ERROR: ("error", "errors"),
    Severity.WARNING: ("warning", "warnings"),
    Severity.NOTE: ("note", "notes"),
    Severity.UNKNOWN: ("check could not run", "checks could not run"),
}


def to_json(
    case: Case, domain: str | None, findings: Sequence[Finding], ignored: Sequence[Finding] = ()
) -> DoctorDocument:
    """Return the findings as JSON.

    :param domain: the guest as the caller named it.
    :param ignored: findings that are only counted.
    """
    return {
        "schema": SCHEMA,
        "host": case.host.source,
        "host_files": case.tree is not None,
        "domain": domain,
        "devices": [str(address) for address in case.devices],
        "counts": _counts(findings),
        "ignored": _counts(ignored),
        "findings": [_finding_json(finding) for finding in findings],
    }


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    counts = Counter(finding.severity for finding in findings)
    return {str(severity): counts[severity] for severity in Severity}


def _finding_json(finding: Finding) -> FindingJson:
    return {
        "id": finding.id,
        "severity": finding.severity.value,
        "subject": finding.subject,
        "evidence": [
            {"where": evidence.where, "what": evidence.what} for evidence in finding.evidence
        ],
        "consequence": finding.consequence,
        "remedy": finding.remedy,
    }


def to_lines(
    about: str, findings: Sequence[Finding], width: int = WIDTH, ignored: Sequence[Finding] = ()
) -> Iterator[str]:
    """Yield a block for each finding and a summary line.

    :param about: short description of the examined host, guest and devices.
    :param width: of the terminal.
    :param ignored: findings that are only counted.
    """
    for alike in alike_findings(findings):
        yield from _block(alike, width)
        yield ""
    details = "; use --explain ID for details" if findings else ""
    yield f"{about}: {summary(findings, ignored)}{details}"


def alike_findings(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Group findings that differ only in their subjects, in order of first appearance."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        texts = (finding.consequence, finding.remedy)
        key = (finding.id, finding.severity, *(t.replace(finding.subject, "") for t in texts))
        groups.setdefault(key, []).append(finding)
    return list(groups.values())


def _block(alike: Sequence[Finding], width: int) -> Iterator[str]:
    first, more = alike[0], len(alike) - 1
    subjects = [finding.subject for finding in alike[:_MAX_SUBJECTS]]
    rest = len(alike) - len(subjects)
    head = ", ".join(subjects) + (f" and {rest} more" if rest else "")
    yield Line(
        [(first.severity.upper(), SEVERITY_TONES[first.severity]), (f" {first.id}: {head}", None)]
    )
    for evidence in first.evidence[:_MAX_EVIDENCE]:
        yield from _wrapped("found", str(evidence), width)
    hidden = len(first.evidence) - _MAX_EVIDENCE
    if hidden > 0:
        yield from _wrapped("", f"and {hidden} more", width)
    if more:
        yield from _wrapped("", f"and the same for {quantity(more, 'other')}", width)
    yield from _wrapped("effect", first.consequence, width)
    yield from _wrapped("remedy", first.remedy, width)


def _wrapped(label: str, text: str, width: int) -> Iterator[str]:
    return prose(text, width, f"  {label:<6}  ")


def summary(findings: Sequence[Finding], ignored: Sequence[Finding] = ()) -> str:
    """Return how many findings of each severity there are, and how many are ignored."""
    counts = Counter(finding.severity for finding in findings)
    parts = [
        f"{counts[severity]} {_COUNTED[severity][counts[severity] > 1]}"
        for severity in Severity
        if counts[severity]
    ]
    found = ", ".join(parts) or "no problems found"
    return f"{found}, {len(ignored)} ignored" if ignored else found
