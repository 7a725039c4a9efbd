"""mapped-page: *direct* and *multi-its* by a call of iommufd that maps an ITS's page.

Sketched by iommufd's maintainers and named IOMMUFD_CMD_IOAS_MAP_MSI in the cover letters of
January and October 2025; no patch was posted. The page comes as a file descriptor, from KVM for
instance, so user space cannot name another physical address. The gIOVA goes through VFIO. Two
modes:

``vits`` (default)
    One stage 2 per physical SMMU, and a virtual ITS (one gDB) per physical ITS, as the maintainers
    describe it.
``s2``
    A stage 2 per (physical SMMU, physical ITS): one gDB can lead to several ITSes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vmm_msi.plugins import (
    Capability,
    DoorbellMaps,
    MsiAllocator,
    Needs,
    Options,
    PciAddress,
    RefusedError,
    S2Pool,
    Session,
    Strategy,
    guest_doorbell,
    smmu_of,
)
from vmm_msi_plugins import moved_window
from vmm_msi_plugins.multi_its import Groups

if TYPE_CHECKING:
    from collections.abc import Hashable


class MappedPageOptions(Options, frozen=True):
    """Options of the strategy.

    :param mode: how ITSes are kept apart.
    """

    mode: Literal["vits", "s2"] = "vits"


class MappedPage(Strategy):
    """The strategy."""

    name = "mapped-page"
    summary = "map an ITS's page at the guest's doorbell by a call of iommufd, preset the address"
    options = MappedPageOptions
    guest = "mode=vits: a virtual ITS per physical ITS"
    host = (
        "a kernel with IOMMUFD_CMD_IOAS_MAP_MSI (sketched in January 2025, no patch posted) and "
        "VFIO_IRQ_SET_ACTION_PREPARE; no IOMMU group with devices of different ITSes"
    )
    xml = "vSMMUs and hostdevs; QEMU cannot bind it"
    costs = (
        "vits: one S2 per physical SMMU; s2: one S2 per physical SMMU and ITS; two S2 mappings per "
        "physical ITS, its page and its slot"
    )

    def needs(self, _options: MappedPageOptions) -> Needs:
        """Require a map of the page, an address from the caller, and a window out of the way."""
        return Needs(
            interface=Capability.MSI_PAGE_MAP,
            capabilities=frozenset(
                {
                    Capability.DOORBELL_MAP,
                    Capability.MSI_PAGE_MAP,
                    Capability.MSI_PRESET,
                    Capability.SW_MSI_MOVE,
                }
            ),
        )

    def vmm_msi_attach_device(self, session: Session, device: PciAddress) -> None:
        """Attach to the stage 2 of the mode, with the MSI window off the doorbells.

        :raise RefusedError: when another device of its IOMMU group needs another ITS.
        """
        session.state(Groups).check(session, device)
        smmu = smmu_of(session, device)
        by_its = session.options_as(MappedPageOptions).mode == "s2"
        key: Hashable = (smmu, session.its_of(device)) if by_its else smmu
        window = moved_window.clear_of_doorbells(session, device)
        moved_window.attach(session, device, window, key, MsiAllocator.CALLER)
        session.state(Groups).add(session, device)

    def vmm_msi_detach_device(self, session: Session, device: PciAddress) -> None:
        """Detach it, restore its window, and remove it from its IOMMU group's."""
        super().vmm_msi_detach_device(session, device)
        moved_window.restore(session, device)
        session.state(Groups).remove(session, device)

    def vmm_msi_bind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Map gDB -> hDB, once for all devices with the same pair, and hand gIOVA to VFIO."""
        session.state(DoorbellMaps).acquire(session, device, session.state(S2Pool).of(device))
        try:
            session.backend.preset_msi(device, guest_doorbell(session, device))
        except RefusedError:
            super().vmm_msi_unbind_doorbell(session, device)
            raise

    def vmm_msi_unbind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Take gIOVA back, and unmap the doorbell when no other device uses it."""
        session.backend.preset_msi(device, None)
        super().vmm_msi_unbind_doorbell(session, device)
