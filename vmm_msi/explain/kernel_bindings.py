"""Causes of faults of devices whose doorbells the kernel binds: which binding is missing or wrong.

With *direct* and *coerced* the kernel's binding of a device has its gIOVA and gDB. A missing one
leaves the device with the address of its slot, a wrong gIOVA faults in the guest's stage 1 (the
guest's log), a wrong gDB in stage 2 (the host's log).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.explain.address_kinds import AddressKind, DescribedAddress
from vmm_msi.explain.cause import Cause
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.types import BinderKind

if TYPE_CHECKING:
    from vmm_msi.explain.log_context import LogContext
    from vmm_msi.types import PciAddress

_REMEDIES = (
    "start vmm-msi watch on the host, which keeps the binding right, or run vmm-msi bind {guest}",
    "vmm-msi status {guest} shows the bindings that the kernel has",
)
_NO_BINDING = Cause(
    "the kernel binds the device's doorbell and has no binding of it, so that it programmed the "
    "device with an address of its SW MSI window, which the guest's stage 1 does not map",
    "binding: the guest's gIOVA -> {gdb}",
    remedies=_REMEDIES,
)
_WRONG_GIOVA = Cause(
    "the device's binding in the kernel has gIOVA {page}, and the guest's stage 1 does not map "
    "that: the guest uses another gIOVA",
    "binding: the guest's gIOVA -> {gdb}; it has {page}",
    remedies=_REMEDIES,
)
_WRONG_GDB = Cause(
    "the guest's stage 1 maps to its doorbell, and stage 2 does not map the doorbell: the device's "
    "binding in the kernel is missing or has another gDB",
    "binding: gIOVA {iova_page} -> {page} (gDB); S2: {page} -> {hdb}",
    remedies=_REMEDIES,
)


def cause_in_kernel(
    event: SmmuEvent,
    iova: DescribedAddress,
    ipa: DescribedAddress | None,
    address: PciAddress | None,
    context: LogContext,
) -> Cause | None:
    """Return the cause of a fault if the kernel's binding of the device explains it.

    :param address: the device on the host; None if it is unknown.
    """
    recorded = None if address is None else context.record.device(address)
    if recorded is None or recorded.backend != BinderKind.KERNEL:
        return None
    if event.kind is not EventKind.F_TRANSLATION or event.table_walk:
        return None
    if event.stage == 2:
        return _WRONG_GDB if ipa is not None and ipa.kind is AddressKind.GDB else None
    if iova.kind is AddressKind.SLOT:
        return _NO_BINDING
    return _WRONG_GIOVA if iova.kind is AddressKind.UNKNOWN and iova.msi else None
