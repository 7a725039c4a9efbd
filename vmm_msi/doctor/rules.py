"""All rules, in the order in which their findings are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor import (
    rules_assigned,
    rules_guest,
    rules_its,
    rules_software,
    rules_strategy,
    rules_vsmmu,
)
from vmm_msi.doctor.finding import Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.doctor.finding import Finding

    #: Looks at a case and tells what it found.
    Rule = Callable[[Case], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    rules_its.no_its,
    rules_software.too_old,
    rules_guest.guest_kind,
    rules_guest.part_gone,
    rules_guest.xml_dropped,
    rules_vsmmu.misplaced_vsmmu,
    rules_vsmmu.no_accel,
    rules_vsmmu.without_iommufd,
    rules_vsmmu.empty_vsmmu,
    rules_vsmmu.emulated_behind_vsmmu,
    rules_vsmmu.vsmmu_spans_smmus,
    rules_vsmmu.not_behind_vsmmu,
    rules_vsmmu.iommufd_opener,
    rules_assigned.device_missing,
    rules_assigned.held_by_domain,
    rules_assigned.partial_group,
    rules_assigned.sriov,
    rules_guest.ram_in_reserved,
    rules_guest.memlock,
    rules_strategy.not_carried,
    rules_strategy.msi_lost,
    rules_strategy.rmr_fixed,
    rules_strategy.window_full,
    rules_strategy.slot_order,
    rules_guest.hotplug_bar_loss,
    rules_guest.no_migration,
)


def examine(case: Case) -> list[Finding]:
    """Return what all rules find, the worst first, otherwise in the order of the rules."""
    order = list(Severity)
    found = [finding for rule in RULES for finding in rule(case)]
    return sorted(found, key=lambda finding: order.index(finding.severity))
