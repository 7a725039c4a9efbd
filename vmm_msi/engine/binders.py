"""Which software binds the doorbells of a device, and what it requires."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.host.msi_bindings import BindingAllocator, takes_bindings
from vmm_msi.iommu.backend import Capability
from vmm_msi.types import BinderKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.config import Choice
    from vmm_msi.domxml.prerequisites import Check
    from vmm_msi.plugins.hookspecs import Needs
    from vmm_msi.types import HostTopology

#: The reason why a strategy does not work on QEMU.
QEMU_CANNOT_APPLY = "QEMU and the kernel bind doorbells by identity and cannot apply it"
#: The simulated kernel that has the interface.
PROFILE = "linux-7.2-bind"

# The allocator of the nest parent that a strategy is about, by its interface.
_ALLOCATORS = {
    Capability.GUEST_BINDING_DIRECT: BindingAllocator.DIRECT,
    Capability.GUEST_BINDING_V2: BindingAllocator.LIST,
    Capability.GUEST_BINDING_V4: BindingAllocator.DEVICE,
    Capability.GUEST_BINDING_V8: BindingAllocator.LIST_ONE_DOMAIN,
    Capability.GUEST_BINDING_V15: BindingAllocator.LIST_ONE_GRANULE,
}


def kernel_allocator(choice: Choice, needs: Needs) -> BindingAllocator | None:
    """Return the allocator with which a kernel with the interface binds; None if it cannot.

    :param needs: those of ``choice``.
    """
    if choice.profile not in {None, PROFILE}:
        return None
    return _ALLOCATORS.get(needs.interface)


def applied_by(choice: Choice, needs: Needs) -> BinderKind:
    """Return what can apply a strategy to a guest that runs.

    It is the kernel where only one with guest MSI bindings can, and the simulator where no host
    can.

    :param needs: those of ``choice``.
    """
    if needs.qemu:
        return BinderKind.QEMU
    return BinderKind.SIM if kernel_allocator(choice, needs) is None else BinderKind.KERNEL


def binder_of_device(
    requested: BinderKind, choice: Choice, needs: Needs, host: HostTopology
) -> BinderKind:
    """Return the binder of a device's doorbells.

    It is the kernel where QEMU cannot apply the strategy and the host's kernel has the interface.

    :param requested: the binder of the guest: the simulator, or QEMU.
    :param needs: those of ``choice``.
    """
    if requested is BinderKind.SIM or applied_by(choice, needs) is not BinderKind.KERNEL:
        return requested
    return BinderKind.KERNEL if takes_bindings(host) else requested


def fatal_checks(binder: BinderKind, needs: Iterable[Needs]) -> set[Check]:
    """Return the checks that a guest must pass for strategies with these needs."""
    from vmm_msi.domxml.prerequisites import Check  # with lxml, which compare does without

    fatal = {Check.ARCH, Check.MACHINE, Check.GIC}
    if any(need.rmr for need in needs):
        fatal |= {Check.ACPI, Check.FIRMWARE}
    if binder is not BinderKind.SIM:
        fatal.add(Check.KVM)
    return fatal
