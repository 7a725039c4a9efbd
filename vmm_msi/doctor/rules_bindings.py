"""Rules about the kernel's interface for guest MSI bindings: its version, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor import simulated
from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.guest_rule_helpers import subject
from vmm_msi.doctor.rule_helpers import doorbell_pages, interface_evidence, named
from vmm_msi.domxml.guest_domain import VIRT_DOORBELL
from vmm_msi.engine.binders import kernel_allocator
from vmm_msi.host.msi_bindings import VERSION
from vmm_msi.types import SW_MSI_WINDOW, BinderKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmm_msi.doctor.case import Case
    from vmm_msi.host.msi_bindings import BindingAllocator
    from vmm_msi.types import PciAddress


def interface_version(case: Case) -> Iterator[Finding]:
    """Yield a finding if the kernel's interface has a version that vmm-msi does not know."""
    version = case.host.msi_bindings
    if version in {None, VERSION}:
        return
    yield Finding(
        "msi-bindings-version",
        Severity.WARNING,
        "host",
        (interface_evidence(case),),
        f"vmm-msi does not use the kernel's interface for guest MSI bindings: it knows version "
        f"{VERSION}.",
        f"Use a vmm-msi that knows version {version}, or a strategy that QEMU applies.",
    )


def _bound_by_kernel(case: Case) -> Mapping[PciAddress, BindingAllocator]:
    """Return the devices whose doorbells the kernel binds, with the allocator of each."""
    if case.plugins is None:
        return {}
    needs = simulated.needs(case, case.plugins)
    allocators = {}
    for device, choice in case.choices.items():
        allocator = kernel_allocator(choice, needs[choice])
        by_kernel = simulated.device_binder(case, choice, needs[choice]) is BinderKind.KERNEL
        if allocator is not None and by_kernel:
            allocators[device] = allocator
    return allocators


def allocators_mixed(case: Case) -> Iterator[Finding]:
    """Yield the SMMUs whose stage 2 would need two allocators: the kernel has one for each."""
    if case.guest is None:
        return
    by_stage2: dict[tuple[int, int | None], dict[BindingAllocator, PciAddress]] = {}
    for device, allocator in _bound_by_kernel(case).items():
        host_device = case.resolved_host.device_by_address.get(device)
        if host_device is not None and host_device.smmu is not None:
            # With an iommufd object for each vSMMU, the devices of each ITS have one of their own.
            own = "iommufd" in dict(case.choices[device].options)
            stage2 = host_device.smmu, host_device.its if own else None
            by_stage2.setdefault(stage2, {}).setdefault(allocator, device)
    for (smmu, _its), devices in by_stage2.items():
        if len(devices) < 2:
            continue
        yield Finding(
            "msi-bindings-mixed",
            Severity.ERROR,
            subject(case.guest.xml),
            tuple(
                Evidence(f"strategy {case.choices[device]} of {device}", f"allocator {allocator}")
                for allocator, device in devices.items()
            ),
            f"The kernel refuses the second allocator (EBUSY): {named(devices.values())} share the "
            f"stage 2 that QEMU makes for SMMU {smmu}, and a stage 2 has one allocator.",
            "Use one of these strategies for all devices behind that SMMU.",
        )


def doorbell_is_slot(case: Case) -> Iterator[Finding]:
    """Yield a finding if the guest's doorbell is a slot that its devices may use before."""
    devices = _bound_by_kernel(case)
    if case.guest is None or not devices:
        return
    granule = case.host.granule
    slot = (VIRT_DOORBELL - SW_MSI_WINDOW.base) // granule
    doorbells = doorbell_pages(case)
    if len(doorbells) <= slot:
        return
    yield Finding(
        "msi-bindings-slot",
        Severity.WARNING,
        subject(case.guest.xml),
        (
            Evidence("gDB of QEMU's virt board", f"{VIRT_DOORBELL} is slot {slot}"),
            Evidence(case.host.source, f"{len(doorbells)} doorbell pages, {granule} each"),
        ),
        f"The kernel refuses to bind {named(devices)} (EEXIST) if {slot + 1} ITSes are used by "
        "identity before: their slots include the guest's doorbell.",
        f"Give the guest devices of at most {slot} ITSes, or use a host kernel with 4K pages.",
    )
