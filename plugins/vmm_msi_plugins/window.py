"""window: identity with a window that the VMM places.

"iommufd: Add MSI mapping support with nested SMMU (Part-2 RMR)", v2 of October 2025, not merged:
IOMMU_OPTION_SW_MSI_START and _SIZE move the range from which the kernel takes doorbell addresses,
per device and before it is attached. The VMM's RMR is where the window is.
"""

from __future__ import annotations

from vmm_msi.plugins import (
    Capability,
    Needs,
    Options,
    PciAddress,
    ReservedRegion,
    Session,
    Strategy,
    smmu_of,
)
from vmm_msi_plugins import moved_window


class _Place:
    """Where the guest's window is."""

    window: ReservedRegion | None = None


class Window(Strategy):
    """The strategy."""

    name = "window"
    summary = "as identity, with the host's MSI window moved to where the guest has room"
    guest = "honours RMR nodes (ACPI); RAM may be anywhere"
    host = (
        "a kernel with IOMMU_OPTION_SW_MSI_START (proposed in October 2025, not merged) and a VMM "
        "whose RMR can be moved"
    )
    xml = "vSMMUs and hostdevs; QEMU cannot bind it, its RMR is fixed"
    costs = "one S2 per physical SMMU, one MSI window page per physical ITS"

    def needs(self, _options: Options) -> Needs:
        """Require a window that can be moved, and a guest that honours RMR nodes."""
        return Needs(
            interface=Capability.SW_MSI_MOVE,
            capabilities=frozenset({Capability.SW_MSI_SLOTS, Capability.SW_MSI_MOVE}),
            rmr=True,
        )

    def vmm_msi_attach_domain(self, session: Session) -> None:
        """Choose the window's place, and advertise it to the guest."""
        window = moved_window.free_window(session)
        session.backend.advertise_rmr(window)
        session.state(_Place).window = window

    def vmm_msi_detach_domain(self, session: Session) -> None:
        """Withdraw the RMR node."""
        session.backend.withdraw_rmr()

    def vmm_msi_attach_device(self, session: Session, device: PciAddress) -> None:
        """Move the device's window, and attach it to the one stage 2 of its SMMU."""
        key = smmu_of(session, device)
        moved_window.attach(session, device, session.state(_Place).window, key)

    def vmm_msi_detach_device(self, session: Session, device: PciAddress) -> None:
        """Detach it, and restore its window."""
        super().vmm_msi_detach_device(session, device)
        moved_window.restore(session, device)
