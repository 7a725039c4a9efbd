"""Every rule that the simulator names: iommufd's, the hardware's and those of the series."""

from __future__ import annotations

from vmm_msi.errors import Rule
from vmm_msi.iommu import rules, series_rules
from vmm_msi.iommu.revisions import REVISIONS
from vmm_msi.iommu.smmu_events import EventKind

FAULTS = (EventKind.F_TRANSLATION, EventKind.F_ADDR_SIZE, EventKind.F_PERMISSION)
#: The rules of the series, and which revisions have each.
OF_SERIES = {
    series_rules.choose_binding: lambda revision: revision.has_bindings,
    series_rules.binding_size: lambda revision: revision.compares_granules,
    series_rules.binding_cookie: lambda revision: revision.has_bindings,
    series_rules.one_its: lambda revision: revision.one_msi_domain,
    series_rules.hw_msi: lambda revision: revision.refuses_hw_msi,
    series_rules.one_stage1: lambda revision: revision.one_stage1,
    series_rules.one_smmu: lambda _revision: True,
    series_rules.two_stages: lambda _revision: True,
    series_rules.smmuv3: lambda _revision: True,
    series_rules.unknown_call: lambda revision: not revision.can_unbind,
}


def all_rules() -> list[Rule]:
    """Return each rule once."""
    found = [rule for rule in vars(rules).values() if isinstance(rule, Rule)]
    found += [rules.smmu_event(kind.name, stage) for kind in FAULTS for stage in (1, 2)]
    found.append(rules.smmu_event(EventKind.C_BAD_STE.name, 0))
    found += series_rules_only()
    return list(dict.fromkeys(found))


def series_rules_only() -> list[Rule]:
    """Return the rules of the series, for each revision that has them."""
    return [
        rule(revision)
        for rule, applies in OF_SERIES.items()
        for revision in REVISIONS
        if applies(revision)
    ]
