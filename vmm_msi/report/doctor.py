"""What the doctor found, in words and as JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Severity
from vmm_msi.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_msi.doctor.finding import Finding

#: Version of the JSON form; it goes up when a key changes its meaning or goes away.
SCHEMA = 1

_WIDTH = 100
#: Subjects that the head of a block names, and lines of evidence in it; more are counted.
_MAX_SUBJECTS = 4
_MAX_EVIDENCE = 6

_COUNTED = {
    Severity.ERROR: ("error", "errors"),
    Severity.WARNING: ("warning", "warnings"),
    Severity.NOTE: ("note", "notes"),
    Severity.UNKNOWN: ("thing that could not be looked at", "things that could not be looked at"),
}


def to_json(about: dict[str, object], findings: Sequence[Finding]) -> dict[str, object]:
    """Return what was found as JSON.

    :param about: what was looked at: ``host``, ``domain``, ``devices``.
    """
    counts = Counter(finding.severity for finding in findings)
    return {
        "schema": SCHEMA,
        **about,
        "counts": {str(severity): counts[severity] for severity in Severity},
        "findings": [
            {
                "id": finding.id,
                "severity": str(finding.severity),
                "subject": finding.subject,
                "evidence": [
                    {"where": evidence.where, "what": evidence.what}
                    for evidence in finding.evidence
                ],
                "consequence": finding.consequence,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }


def to_lines(about: str, findings: Sequence[Finding]) -> Iterator[str]:
    """Yield a block for each finding and a line that counts them.

    :param about: what was looked at, in a few words.
    """
    for alike in _folded(findings):
        yield from _block(alike)
        yield ""
    yield f"{about}: {_summary(findings)}"


def _folded(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Put findings together that say the same of different subjects, the first of them first."""
    found: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        words = (finding.consequence, finding.remedy)
        key = (finding.id, finding.severity, *(w.replace(finding.subject, "") for w in words))
        found.setdefault(key, []).append(finding)
    return list(found.values())


def _block(alike: Sequence[Finding]) -> Iterator[str]:
    first, more = alike[0], len(alike) - 1
    subjects = [finding.subject for finding in alike[:_MAX_SUBJECTS]]
    rest = len(alike) - len(subjects)
    head = ", ".join(subjects) + (f" and {rest} more" if rest else "")
    yield f"{first.severity.upper()} {first.id}: {head}"
    for evidence in first.evidence[:_MAX_EVIDENCE]:
        yield from _wrapped("read", str(evidence))
    hidden = len(first.evidence) - _MAX_EVIDENCE
    if hidden > 0:
        yield from _wrapped("", f"and {hidden} more")
    if more:
        yield from _wrapped(
            "", f"and so for the other {more}" if more > 1 else "and so for the other"
        )
    yield from _wrapped("then", first.consequence)
    yield from _wrapped("do", first.remedy)


def _wrapped(label: str, text: str) -> Iterator[str]:
    yield from textwrap.wrap(
        printable(text),
        _WIDTH,
        initial_indent=f"  {label:<4}  ",
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _summary(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.severity for finding in findings)
    parts = [
        f"{counts[severity]} {_COUNTED[severity][counts[severity] > 1]}"
        for severity in Severity
        if counts[severity]
    ]
    if not parts:
        return "nothing found that would keep guests from working"
    return f"{', '.join(parts)}; --explain ID tells more of one"
