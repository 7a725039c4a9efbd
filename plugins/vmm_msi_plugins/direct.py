"""direct: gDB -> hDB for the device that has it, no allocator.

Robin Murphy's question of 2018: the caller that knows the binding "could just as easily call
iommu_map()". On iommufd with guest bindings the kernel does, for the device's own ITS. Elsewhere
the host's doorbell must be known at bind time; the ITS selector names its ITS.
"""

from __future__ import annotations

from vmm_msi.plugins import (
    Capability,
    DoorbellMaps,
    Iova,
    MsiAllocator,
    Needs,
    Options,
    PciAddress,
    S2Pool,
    Session,
    Strategy,
    smmu_of,
)
from vmm_msi_plugins import moved_window

#: A doorbell map and a write of the MSI address.
NEEDS = Needs(
    interface=Capability.GUEST_BINDING_DIRECT,
    capabilities=frozenset({Capability.DOORBELL_MAP, Capability.MSI_ADDRESS_WRITE}),
)


class Direct(Strategy):
    """The strategy."""

    name = "direct"
    summary = "map the guest's doorbell straight to the host's at stage 2"
    guest = "a virtual ITS of its own for each physical ITS its devices use"
    host = "a kernel or a VMM that may map the doorbell; on iommufd a gDB outside of the MSI window"
    xml = "vSMMUs and hostdevs; QEMU cannot bind it"
    costs = "one S2 per physical SMMU, one S2 mapping per virtual doorbell in each"

    def needs(self, _options: Options) -> Needs:
        """Require a doorbell map and a write of the MSI address."""
        return NEEDS

    def vmm_msi_attach_device(self, session: Session, device: PciAddress) -> None:
        """Attach to the one stage 2 of the device's SMMU.

        Where the kernel can move its MSI window, that is moved off the guest's doorbells.
        """
        window = moved_window.clear_of_doorbells(session, device)
        key = smmu_of(session, device)
        moved_window.attach(session, device, window, key, MsiAllocator.CALLER)

    def vmm_msi_detach_device(self, session: Session, device: PciAddress) -> None:
        """Detach it, and restore a moved window."""
        super().vmm_msi_detach_device(session, device)
        moved_window.restore(session, device)

    def vmm_msi_bind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Map gDB -> hDB, once for all devices with the same pair."""
        session.state(DoorbellMaps).acquire(session, device, session.state(S2Pool).of(device))

    def vmm_msi_prepare_msi(self, session: Session, device: PciAddress) -> Iova:
        """Have the guest's gIOVA in the device."""
        return session.state(DoorbellMaps).program(session, device)
