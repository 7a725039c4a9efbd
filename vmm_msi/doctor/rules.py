"""All rules, in the order in which their findings are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor import rules_its
from vmm_msi.doctor.finding import Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.doctor.finding import Finding

    #: Looks at a case and tells what it found.
    Rule = Callable[[Case], Iterator[Finding]]

RULES: tuple[Rule, ...] = (rules_its.no_its,)


def examine(case: Case) -> list[Finding]:
    """Return what all rules find, the worst first, otherwise in the order of the rules."""
    order = list(Severity)
    found = [finding for rule in RULES for finding in rule(case)]
    return sorted(found, key=lambda finding: order.index(finding.severity))
