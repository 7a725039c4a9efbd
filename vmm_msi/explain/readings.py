"""Causes of faults by the user of the device, where it is not a guest behind an accelerated vSMMU.

The host's kernel writes stage 1 for its own drivers and for guests without a vSMMU. In the log of
a guest whose vSMMU QEMU emulates, the guest's kernel does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.explain.address_kinds import AddressKind
from vmm_msi.explain.cause import Cause
from vmm_msi.explain.users import User
from vmm_msi.iommu.smmu_events import EventKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm_msi.explain.address_kinds import DescribedAddress
    from vmm_msi.iommu.smmu_events import SmmuEvent

_HOST_DRIVER = ("fix the device's driver on the host: no strategy helps",)
_HOST_KERNEL = ("update the host's kernel, or report it there: no strategy helps",)
_PROGRAM_AGAIN = ("bind its driver again: the kernel then programs its MSIs again",)
_MISSING = "S1: {page}, of the host's tables"
#: The 32-bit space, from whose top Linux allocates IOVAs (``drivers/iommu/dma-iommu.c``
#: iommu_dma_alloc_iova); an ITS page gets one of the first.
_BELOW_4G = (0xF000_0000, 0xFFFF_FFFF)

_DOORBELL_BEFORE = Cause(
    "the device was programmed with the doorbell's physical address before the SMMU translated "
    "for it",
    _MISSING,
    _PROGRAM_AGAIN,
)
_ITS_PAGE_BELOW_4G = Cause(
    "stage 1 is the host's; {page}, just below 4 GiB, is where its DMA API puts an ITS page, which "
    "the device's IOMMU domain does not map (drivers/iommu/dma-iommu.c iommu_dma_get_msi_page)",
    _MISSING,
    _HOST_KERNEL,
)
_ITS_PAGE = Cause(
    "stage 1 is the host's; by its offset, the address is one that its DMA API gave to an ITS "
    "page, and the device's IOMMU domain does not map it (drivers/iommu/dma-iommu.c "
    "iommu_dma_get_msi_page)",
    _MISSING,
    _HOST_KERNEL,
)
_HOST_DMA = Cause(
    "stage 1 is the host's: its driver did not map the address, or unmapped it too early; or "
    "firmware or an earlier kernel left the device active",
    _MISSING,
    _HOST_DRIVER,
)
_OLD_WINDOW = Cause(
    "stage 1 is the host's, whose DMA API does not use the SW MSI window: the device still has the "
    "address that it got for a guest",
    _MISSING,
    _PROGRAM_AGAIN,
)

_GUEST_WINDOW = Cause(
    "stage 1 is the host's, which maps the page when the MSI is enabled: the device has since been "
    "moved to another IOMMU domain, or a reset or the guest changed its MSI address",
    "S1: {page} -> {hdb}, of the host's tables",
    ("restart the guest: VFIO then enables the MSIs again",),
)
_GUEST_RAM = Cause(
    "stage 1 is the host's, and the IOVA is a physical address of the guest: its RAM is not mapped "
    "there, since mapping it failed or it was unplugged",
    _MISSING,
    ("see QEMU's log: vmm-msi explain < /var/log/libvirt/qemu/{guest}.log",),
)
_GUEST_OTHER = Cause(
    "stage 1 is the host's, and the IOVA is a physical address of the guest that is not RAM: a BAR "
    "of another device (peer-to-peer DMA), or an error of the guest's driver",
    _MISSING,
    ("check the guest's driver of the device: no strategy helps",),
)
_EMULATED = Cause(
    "QEMU walks the guest's tables: the guest's driver did not map the address, or unmapped it too "
    "early",
    "S1: {page}, of the guest's tables",
    ("fix the guest's driver: no strategy helps",),
)

_HOST_STAGE1: Mapping[AddressKind, Cause] = {
    AddressKind.SLOT: _OLD_WINDOW,
    AddressKind.BEYOND_RMR: _OLD_WINDOW,
    AddressKind.HDB: _DOORBELL_BEFORE,
}
_PLAIN_STAGE1: Mapping[AddressKind, Cause] = {
    AddressKind.SLOT: _GUEST_WINDOW,
    AddressKind.BEYOND_RMR: _GUEST_WINDOW,
    AddressKind.HDB: _DOORBELL_BEFORE,
    AddressKind.RAM: _GUEST_RAM,
}
#: The other faults, by their kind.
_OTHERS: Mapping[EventKind, tuple[Cause, Cause]] = {
    EventKind.F_PERMISSION: (
        Cause(
            "the host's driver mapped it in one direction, and the device accesses it in the other",
            "{page}, with this permission",
            _HOST_DRIVER,
        ),
        Cause(
            "the host maps it read-only for the guest, as ROM and firmware images are",
            "{page}, with write permission",
            ("check the guest's driver of the device: no strategy helps",),
        ),
    ),
    EventKind.F_ADDR_SIZE: (
        Cause("the address is larger than the host's tables take", "", _HOST_DRIVER),
        Cause(
            "the address is larger than the host's tables take",
            "",
            ("check the guest's driver of the device: no strategy helps",),
        ),
    ),
    EventKind.F_ACCESS: (
        Cause("the host's kernel wrote an entry whose access flag is clear", "", _HOST_KERNEL),
        Cause("the host's kernel wrote an entry whose access flag is clear", "", _HOST_KERNEL),
    ),
}
_ONLY_STAGE2 = (
    "stage 2 is the only one, as on an SMMU without stage 1: the host's kernel does not map the "
    "address"
)


def cause_for(user: User, event: SmmuEvent, iova: DescribedAddress) -> Cause:
    """Return the cause of a fault for a user other than :attr:`User.NESTED`."""
    if user is User.EMULATED:
        return _EMULATED
    host = user is User.HOST
    others = _OTHERS.get(event.kind)
    if others is not None:
        return others[0] if host else others[1]
    if event.stage == 2:
        return Cause(_ONLY_STAGE2, "S2: {page}", _HOST_DRIVER if host else _GUEST_OTHER.remedies)
    if not host:
        return _PLAIN_STAGE1.get(iova.kind, _GUEST_OTHER)
    cause = _HOST_STAGE1.get(iova.kind)
    if cause is None and iova.msi:
        first, last = _BELOW_4G
        cause = _ITS_PAGE_BELOW_4G if first <= event.iova <= last else _ITS_PAGE
    return cause or _HOST_DMA
