"""multi-its: devices of one guest on different physical ITSes, perhaps behind one virtual ITS.

The question that 2018 left open. Three modes:

``s2`` (default)
    A stage 2 per (physical SMMU, physical ITS), each with the same guest RAM and its own
    gDB -> hDB entry: one gDB can lead to several ITSes.
``vits``
    One stage 2 per physical SMMU, and a virtual ITS (one gDB) per physical ITS.
``vsmmu``
    A virtual SMMU per (physical SMMU, physical ITS), doorbells by identity: what QEMU and the
    kernel can bind. The virtual SMMUs on one physical SMMU share its stage 2, in which each ITS
    has a slot of its own (QEMU ``hw/vfio/iommufd.c`` iommufd_cdev_autodomains_get).

``iommufd=each`` gives each of these pairs a virtual SMMU with an iommufd object of its own. QEMU
allocates a stage 2 per iommufd object and physical SMMU, so this is how it keeps several on one
physical SMMU; the slots are counted per iommufd object, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from vmm_msi.plugins import (
    SW_MSI_WINDOW,
    Capability,
    DoorbellMaps,
    GuestPlan,
    Iova,
    MsiAllocator,
    Needs,
    Options,
    PciAddress,
    RefusedError,
    S2Pool,
    Session,
    Strategy,
    VsmmuPlan,
    smmu_of,
)
from vmm_msi_plugins import direct, identity, moved_window

if TYPE_CHECKING:
    from collections.abc import Hashable


class MultiItsOptions(Options, frozen=True):
    """Options of the strategy.

    :param mode: how ITSes are kept apart.
    :param iommufd: ``each``: a virtual SMMU and an iommufd object for each physical SMMU and ITS.
    """

    mode: Literal["s2", "vits", "vsmmu"] = "s2"
    iommufd: Literal["each"] | None = None

    def __post_init__(self) -> None:
        if self.iommufd is not None and self.mode == "vits":
            raise ValueError(
                "mode=vits has one stage 2 for each physical SMMU, iommufd=each several; use "
                "mode=s2 or mode=vsmmu"
            )


class MultiIts(Strategy):
    """The strategy."""

    name = "multi-its"
    summary = "keep devices of different physical ITSes apart: an S2, a vITS or a vSMMU for each"
    options = MultiItsOptions
    guest = "mode=vits: a virtual ITS per physical ITS; mode=vsmmu: honours RMR nodes"
    host = "no IOMMU group with devices of different ITSes; mode=vsmmu: iommufd"
    xml = (
        "vSMMUs and hostdevs; mode=vsmmu or iommufd=each: one vSMMU per physical SMMU and ITS; "
        "iommufd=each: an iommufd object for each, by qemu:commandline and qemu:override"
    )
    costs = (
        "s2, iommufd=each: one S2 per physical SMMU and ITS; vits, vsmmu: one S2 per physical "
        "SMMU; one S2 mapping per physical ITS; iommufd=each: guest RAM pinned once per S2"
    )

    def needs(self, options: MultiItsOptions) -> Needs:
        """Require what identity does in mode ``vsmmu``, else what direct does."""
        needs = identity.NEEDS if options.mode == "vsmmu" else direct.NEEDS
        if options.iommufd is None:
            return needs
        return replace(needs, capabilities=needs.capabilities | {Capability.IOMMUFD_FILES})

    def vmm_msi_plan_domain(self, session: Session) -> GuestPlan | None:
        """Give each (SMMU, ITS) a virtual SMMU in mode ``vsmmu`` and with ``iommufd=each``."""
        options = session.options_as(MultiItsOptions)
        if options.mode != "vsmmu" and options.iommufd is None:
            return None
        groups: dict[tuple[int, int], list[PciAddress]] = {}
        for guest_device in session.guest.devices:
            device = guest_device.host
            groups.setdefault((smmu_of(session, device), session.its_of(device)), []).append(device)
        return GuestPlan(
            tuple(
                VsmmuPlan(
                    smmu=smmu,
                    its=its,
                    devices=tuple(devices),
                    own_iommufd=options.iommufd is not None,
                )
                for (smmu, its), devices in groups.items()
            )
        )

    def vmm_msi_attach_domain(self, session: Session) -> None:
        """Advertise the MSI window in mode ``vsmmu``."""
        if _mode(session) == "vsmmu":
            session.backend.advertise_rmr(SW_MSI_WINDOW)

    def vmm_msi_detach_domain(self, session: Session) -> None:
        """Withdraw the RMR node."""
        if _mode(session) == "vsmmu":
            session.backend.withdraw_rmr()

    def vmm_msi_attach_device(self, session: Session, device: PciAddress) -> None:
        """Attach to the stage 2 of the device's SMMU, or of its SMMU and ITS.

        :raise RefusedError: when another device of its IOMMU group needs another ITS; in mode
            ``vsmmu`` when the guest translates and ignores RMR nodes.
        """
        options = session.options_as(MultiItsOptions)
        by_identity = options.mode == "vsmmu"
        own_file = options.iommufd is not None
        if by_identity:
            _check_rmr(session, device)
            identity.check_window(session, device)
        session.state(Groups).check(session, device)
        smmu, its = smmu_of(session, device), session.its_of(device)
        key: Hashable = (smmu, its) if options.mode == "s2" or own_file else smmu
        if by_identity:
            session.state(S2Pool).attach(session, device, key, own_file=own_file)
        else:
            window = moved_window.clear_of_doorbells(session, device)
            allocator = MsiAllocator.CALLER
            moved_window.attach(session, device, window, key, allocator, own_file=own_file)
        session.state(Groups).add(session, device)

    def vmm_msi_detach_device(self, session: Session, device: PciAddress) -> None:
        """Detach, restore a moved window, and remove the device from its IOMMU group's."""
        super().vmm_msi_detach_device(session, device)
        moved_window.restore(session, device)
        session.state(Groups).remove(session, device)

    def vmm_msi_bind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Map gDB -> hDB in the device's stage 2, except in mode ``vsmmu``."""
        if _mode(session) != "vsmmu":
            session.state(DoorbellMaps).acquire(session, device, session.state(S2Pool).of(device))

    def vmm_msi_prepare_msi(self, session: Session, device: PciAddress) -> Iova:
        """Have the guest's gIOVA in the device; in mode ``vsmmu`` the kernel picks the slot.

        :raise RefusedError: when the slot lies behind the window that the guest maps.
        """
        if _mode(session) != "vsmmu":
            return session.state(DoorbellMaps).program(session, device)
        programmed = session.backend.prepare_msi(device)
        if programmed > SW_MSI_WINDOW.last:
            page_size = session.backend.page_size
            raise RefusedError(
                f"{device}: the kernel gives it the doorbell address {programmed}, outside of the "
                f"window {SW_MSI_WINDOW}; with host pages of {page_size >> 10}K it has room for "
                f"{SW_MSI_WINDOW.size // page_size} ITSes"
            )
        return programmed


def _check_rmr(session: Session, device: PciAddress) -> None:
    guest = session.guest
    stage1 = guest.stage1_by_id[session.guest_device(device).stage1]
    if stage1.translates and not guest.honours_rmr:
        raise RefusedError(
            f"guest {guest.name}: ignores RMR nodes, and mode vsmmu binds doorbells by them; use "
            "mode s2 on a kernel with its interface"
        )


def _mode(session: Session) -> str:
    return session.options_as(MultiItsOptions).mode


class Groups:
    """The attached devices of each IOMMU group."""

    def __init__(self) -> None:
        self._devices: dict[int, set[PciAddress]] = {}

    def check(self, session: Session, device: PciAddress) -> None:
        """Check that the device needs the ITS that its group uses.

        :raise RefusedError: when another attached device of the group needs another ITS.
        """
        group = session.host_device(device).iommu_group
        other = next(iter(self._devices.get(group, ())), None)
        if other is not None and session.its_of(other) != session.its_of(device):
            raise RefusedError(
                f"{device}: IOMMU group {group} shares one translation, but {device} needs ITS "
                f"{session.its_of(device)} and {other} needs ITS {session.its_of(other)}; assign "
                "only one of them"
            )

    def add(self, session: Session, device: PciAddress) -> None:
        """Add an attached device to its group."""
        self._devices.setdefault(session.host_device(device).iommu_group, set()).add(device)

    def remove(self, session: Session, device: PciAddress) -> None:
        """Remove a detached device from its group."""
        self._devices[session.host_device(device).iommu_group].discard(device)
