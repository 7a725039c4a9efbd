"""Refuse what the rules report as errors, and turn warnings into notes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Severity
from vmm_msi.doctor.rule_helpers import named
from vmm_msi.errors import FindingsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.doctor.finding import Finding


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that are errors."""
    return [finding for finding in findings if finding.severity is Severity.ERROR]


def refusal(action: str, findings: Iterable[Finding], *, can_override: bool) -> FindingsError:
    """Return the error that refuses an action because of findings.

    :param action: what is refused, such as ``attaching 0000:01:00.0 to guest0``.
    :param can_override: the command does it all the same with ``--allow-faults``.
    """
    listed = list(findings)
    ids = tuple(dict.fromkeys(finding.id for finding in listed))
    details = f"Run vmm-msi doctor --explain {ids[0]} for details"
    end = f"{details}, or use --allow-faults to do it all the same" if can_override else details
    return FindingsError(f"{action}: {' '.join(_texts(listed))} {end}", ids)


def notes(findings: Iterable[Finding]) -> list[str]:
    """Return a note for each finding that is an error or a warning."""
    serious = (Severity.ERROR, Severity.WARNING)
    return _texts(finding for finding in findings if finding.severity in serious)


def _texts(findings: Iterable[Finding]) -> list[str]:
    """Return a text for each effect, with all subjects that it has."""
    subjects: dict[tuple[str, str], dict[str, None]] = {}
    for finding in findings:
        text = f"{finding.consequence} {finding.remedy}"
        subjects.setdefault((finding.id, text), {})[finding.subject] = None
    return [f"{name} ({named(who)}): {text}" for (name, text), who in subjects.items()]
