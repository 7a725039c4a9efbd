"""preset: the VMM hands the guest's gIOVA to VFIO, and the kernel's slot lies at gDB.

The "second approach" of "iommu: Add MSI mapping support with nested SMMU", RFC v2 of January 2025,
not merged. The kernel composes each message with the gIOVA that VFIO_IRQ_SET_ACTION_PREPARE gave
it, so the address survives resets, which it does not with *placed*. For stage 2 the posting moves
the MSI window to gDB, so that the first slot is gDB -> hDB.
"""

from __future__ import annotations

from vmm_msi.plugins import (
    Capability,
    Needs,
    Options,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    Session,
    Strategy,
    guest_doorbell,
    smmu_of,
)
from vmm_msi_plugins import moved_window


class Preset(Strategy):
    """The strategy."""

    name = "preset"
    summary = "hand the guest's address to VFIO, and move the host's MSI window to the doorbell"
    guest = "a virtual ITS of its own for each physical ITS its devices use"
    host = (
        "a kernel with VFIO_IRQ_SET_ACTION_PREPARE and IOMMU_OPTION_SW_MSI_START (proposed in "
        "January 2025, not merged)"
    )
    xml = "vSMMUs and hostdevs; QEMU cannot bind it"
    costs = "one S2 per physical SMMU, one S2 mapping per physical ITS in each"

    def needs(self, _options: Options) -> Needs:
        """Require an address from the caller, and a window that can be moved."""
        return Needs(
            interface=Capability.MSI_PRESET,
            capabilities=frozenset(
                {Capability.SW_MSI_SLOTS, Capability.SW_MSI_MOVE, Capability.MSI_PRESET}
            ),
        )

    def vmm_msi_attach_device(self, session: Session, device: PciAddress) -> None:
        """Attach to the one stage 2 of the device's SMMU, with the MSI window at gDB."""
        gdb = session.guest.gdb(session.guest_device(device))
        base = gdb.align_down(session.backend.page_size)
        window = ReservedRegion(base, moved_window.MIB, ReservedKind.SW_MSI)
        moved_window.attach(session, device, window, smmu_of(session, device))

    def vmm_msi_detach_device(self, session: Session, device: PciAddress) -> None:
        """Detach it, and restore its window."""
        super().vmm_msi_detach_device(session, device)
        moved_window.restore(session, device)

    def vmm_msi_bind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Hand gIOVA to VFIO."""
        session.backend.preset_msi(device, guest_doorbell(session, device))

    def vmm_msi_unbind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Take it back."""
        session.backend.preset_msi(device, None)
