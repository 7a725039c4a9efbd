"""List all rules, in the order in which their findings are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor import (
    rules_groups,
    rules_interrupts,
    rules_its,
    rules_kernel,
    rules_smmu,
    rules_sources,
    rules_streams,
    rules_window,
)
from vmm_msi.doctor.finding import Severity
from vmm_msi.doctor.plugin_rules import plugin_findings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.doctor.finding import Finding

    #: Examines a case and yields its findings.
    Rule = Callable[[Case], Iterator[Finding]]

#: Rules that apply to every host.
HOST_RULES: tuple[Rule, ...] = (
    rules_kernel.no_iommufd,
    rules_kernel.too_old,
    rules_kernel.no_nested_smmu,
    rules_kernel.no_smmu_driver,
    rules_kernel.no_vfio_cdev,
    rules_kernel.no_vfio_pci,
    rules_kernel.no_dev_iommu,
    rules_sources.device_missing,
    rules_sources.bridge,
    rules_smmu.no_smmu,
    rules_smmu.not_driven,
    rules_smmu.no_iommu_group,
    rules_smmu.version_2,
    rules_smmu.no_stage,
    rules_smmu.not_nested,
    rules_smmu.no_s2fwb,
    rules_smmu.not_coherent,
    rules_streams.many,
    rules_streams.shared,
    rules_its.no_its,
    rules_its.pre_its,
    rules_interrupts.unsafe_needed,
    rules_interrupts.unsafe_on,
    rules_interrupts.noiommu,
    rules_window.hw_msi,
    rules_window.direct,
    rules_window.window_moved,
    rules_groups.group_host_driver,
    rules_groups.mixed_its,
    rules_sources.disagree,
    rules_sources.table_errors,
    rules_groups.host_driver,
    rules_its.several_in_group,
    rules_its.gicv5,
    rules_streams.ats_not_promised,
    rules_smmu.passthrough,
    rules_sources.not_root,
    rules_sources.no_tables,
    rules_kernel.not_checked,
    rules_kernel.config_unknown,
    rules_smmu.unknown,
    rules_its.its_unknown,
    rules_sources.device_unknown,
)

#: Rules that apply only without a guest and a strategy, for which other rules are more precise.
ALONE_RULES: tuple[Rule, ...] = (rules_window.capacity,)


def guest_rules() -> tuple[Rule, ...]:
    """Return the rules about a guest and the software that runs it.

    These rules depend on XML and strategies, so they are imported only when needed.
    """
    from vmm_msi.doctor import (
        rules_assigned,
        rules_bindings,
        rules_guest,
        rules_qemu_arguments,
        rules_software,
        rules_strategy,
        rules_values,
        rules_vsmmu,
    )

    return (
        rules_software.too_old,
        rules_software.capabilities,
        rules_guest.guest_kind,
        rules_guest.part_gone,
        rules_values.libvirt_refuses,
        rules_qemu_arguments.command_line,
        rules_qemu_arguments.iommufd_objects,
        rules_guest.xml_dropped,
        rules_values.qemu_refuses,
        rules_vsmmu.misplaced_vsmmu,
        rules_vsmmu.accel_dropped,
        rules_vsmmu.no_accel,
        rules_vsmmu.without_iommufd,
        rules_vsmmu.empty_vsmmu,
        rules_vsmmu.emulated_behind_vsmmu,
        rules_vsmmu.vsmmu_spans_smmus,
        rules_vsmmu.not_behind_vsmmu,
        rules_vsmmu.iommufd_opener,
        rules_assigned.held_by_domain,
        rules_assigned.not_bound_to_vfio,
        rules_assigned.partial_group,
        rules_assigned.sriov,
        rules_guest.ram_in_reserved,
        rules_guest.memlock,
        rules_strategy.not_carried,
        rules_bindings.interface_version,
        rules_bindings.allocators_mixed,
        rules_bindings.doorbell_is_slot,
        rules_strategy.msi_lost,
        rules_strategy.rmr_fixed,
        rules_strategy.rmr_needed,
        rules_strategy.rmr_direct,
        rules_strategy.window_full,
        rules_strategy.slot_order,
        rules_guest.hotplug_bar_loss,
        rules_guest.no_migration,
    )


def examine_without_strategy(case: Case) -> list[Finding]:
    """Return the findings that apply with any strategy.

    ``compare`` shows a verdict on each strategy instead of the others.
    """
    from vmm_msi.doctor import rules_bindings, rules_strategy

    about_strategies = (
        rules_window.window_moved,
        rules_window.capacity,
        rules_strategy.not_carried,
        rules_bindings.allocators_mixed,
        rules_bindings.doorbell_is_slot,
        rules_strategy.msi_lost,
        rules_strategy.rmr_fixed,
        rules_strategy.rmr_needed,
        rules_strategy.window_full,
        rules_strategy.slot_order,
    )
    findings = examine(case, about_strategies, skip_broken=True)
    # Only strategies that need an RMR need ACPI.
    return [finding for finding in findings if finding.id != "no-acpi"]


def minor_rules() -> frozenset[Rule]:
    """Return the rules that report neither errors nor warnings."""
    from vmm_msi.doctor import rules_guest, rules_strategy, rules_vsmmu

    return frozenset(
        {
            rules_its.gicv5,
            rules_its.its_unknown,
            rules_its.several_in_group,
            rules_groups.host_driver,
            rules_kernel.config_unknown,
            rules_kernel.not_checked,
            rules_smmu.passthrough,
            rules_smmu.unknown,
            rules_sources.device_unknown,
            rules_sources.no_tables,
            rules_sources.not_root,
            rules_streams.ats_not_promised,
            rules_window.capacity,
            rules_guest.no_migration,
            rules_strategy.rmr_direct,
            rules_strategy.rmr_needed,
            rules_strategy.slot_order,
            rules_vsmmu.not_behind_vsmmu,
        }
    )


def errors_and_warnings(case: Case) -> list[Finding]:
    """Return the errors and warnings among the findings, in the order of :func:`examine`.

    :raise PluginError: for a plugin's rule that fails: what it checks is unknown.
    """
    serious = (Severity.ERROR, Severity.WARNING)
    findings = examine(case, minor_rules(), skip_broken=False)
    return [finding for finding in findings if finding.severity in serious]


def rules_for(case: Case) -> tuple[Rule, ...]:
    """Return the rules that apply to a case, in order."""
    if case.guest is None and case.plugins is None:
        return (*HOST_RULES, *ALONE_RULES)
    if case.guest is not None and not all(bad.is_clear for bad in case.guest.bad_values):
        from vmm_msi.doctor import rules_values

        return (*HOST_RULES, rules_values.libvirt_refuses)
    return (*HOST_RULES, *guest_rules())


def examine(
    case: Case, without: Collection[Rule] = (), *, skip_broken: bool = True
) -> list[Finding]:
    """Return the findings of all rules, worst first, otherwise in the order of the rules.

    :param without: rules that do not run.
    :param skip_broken: skip a plugin's rule that fails, with a warning.
    :raise PluginError: for a plugin's rule that fails, unless it is skipped.
    """
    order = list(Severity)
    rules = [rule for rule in rules_for(case) if rule not in without]
    findings = [finding for rule in rules for finding in rule(case)]
    findings += plugin_findings(case, skip_broken=skip_broken)
    return sorted(findings, key=lambda finding: order.index(finding.severity))
