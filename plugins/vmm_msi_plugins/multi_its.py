"""multi-its: devices of one guest on different physical ITSes, perhaps behind one virtual ITS.

The question that 2018 left open. Three modes:

``s2`` (default)
    A stage 2 per (physical SMMU, physical ITS), each with the same guest RAM and its own
    gDB -> hDB entry: one gDB can lead to several ITSes.
``vits``
    One stage 2 per physical SMMU, and a virtual ITS (one gDB) per physical ITS.
``vsmmu``
    A virtual SMMU, hence a stage 2, per (physical SMMU, physical ITS), doorbells by identity:
    what QEMU and the kernel can carry out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vmm_msi.plugins import (
    SW_MSI_WINDOW,
    Capability,
    DoorbellMaps,
    GuestPlan,
    Iova,
    Needs,
    Options,
    PciAddress,
    PluginInfo,
    PluginKind,
    RefusedError,
    S2Pool,
    Session,
    VsmmuPlan,
    guest_doorbell,
    hookimpl,
    smmu_of,
)
from vmm_msi_plugins.common import (
    vmm_msi_unbind_doorbell,
)

__all__ = [
    "vmm_msi_unbind_doorbell",
]
from vmm_msi_plugins.identity import check_window

if TYPE_CHECKING:
    from collections.abc import Hashable


class MultiItsOptions(Options, frozen=True):
    """Options of the strategy.

    :param mode: how ITSes are kept apart.
    """

    mode: Literal["s2", "vits", "vsmmu"] = "s2"


def _mode(session: Session) -> str:
    return session.options_as(MultiItsOptions).mode


def _needs(options: MultiItsOptions) -> Needs:
    if options.mode == "vsmmu":
        return Needs(
            interface=Capability.SW_MSI_SLOTS,
            capabilities=frozenset({Capability.SW_MSI_SLOTS}),
            rmr=True,
            qemu=True,
        )
    return Needs(
        interface=Capability.KERNEL_DOORBELL_MAP,
        capabilities=frozenset({Capability.DOORBELL_MAP, Capability.MSI_ADDRESS_WRITE}),
    )


@hookimpl
def vmm_msi_describe() -> PluginInfo:
    """Describe the strategy."""
    return PluginInfo(
        name="multi-its",
        kind=PluginKind.STRATEGY,
        summary="keep devices of different physical ITSes apart: an S2, a vITS or a vSMMU for each",
        options=MultiItsOptions,
        needs=_needs,
        guest="mode=vits: a virtual ITS per physical ITS; mode=vsmmu: honours RMR nodes",
        host="no IOMMU group with devices of different ITSes; mode=vsmmu: iommufd",
        xml="vSMMUs and hostdevs; mode=vsmmu: one vSMMU per physical SMMU and ITS",
        costs="s2, vsmmu: one S2 per physical SMMU and ITS; vits: one S2 per physical SMMU; one "
        "S2 mapping per physical ITS",
    )


@hookimpl
def vmm_msi_plan_domain(session: Session) -> GuestPlan | None:
    """Give each (SMMU, ITS) a virtual SMMU of its own in mode ``vsmmu``."""
    if _mode(session) != "vsmmu":
        return None
    groups: dict[tuple[int, int], list[PciAddress]] = {}
    for guest_device in session.guest.devices:
        device = guest_device.host
        groups.setdefault((smmu_of(session, device), session.its_of(device)), []).append(device)
    return GuestPlan(
        tuple(
            VsmmuPlan(smmu=smmu, its=its, devices=tuple(devices))
            for (smmu, its), devices in groups.items()
        )
    )


@hookimpl
def vmm_msi_attach_domain(session: Session) -> bool:
    """Announce the MSI window in mode ``vsmmu``.

    :raise RefusedError: when the guest would not heed it.
    """
    if _mode(session) == "vsmmu":
        if not session.guest.honours_rmr:
            raise RefusedError(
                f"guest {session.guest.name}: ignores RMR nodes, and mode vsmmu binds doorbells by "
                "them; mode s2 would work, where the kernel has its interface"
            )
        session.backend.advertise_rmr(SW_MSI_WINDOW)
    return True


@hookimpl
def vmm_msi_detach_domain(session: Session) -> bool:
    """Withdraw it."""
    if _mode(session) == "vsmmu":
        session.backend.withdraw_rmr()
    return True


@hookimpl
def vmm_msi_attach_device(session: Session, device: PciAddress) -> bool:
    """Attach to the stage 2 of the device's SMMU and, except in mode ``vits``, ITS.

    :raise RefusedError: when another device of its IOMMU group needs another ITS.
    """
    if _mode(session) == "vsmmu":
        check_window(session, device)
    session.state(_Groups).check(session, device)
    smmu, its = smmu_of(session, device), session.its_of(device)
    key: Hashable = smmu if _mode(session) == "vits" else (smmu, its)
    by_identity = _mode(session) == "vsmmu"
    session.state(S2Pool).attach(session, device, key, msi_cookie=by_identity)
    session.state(_Groups).join(session, device)
    return True


class _Groups:
    """The attached devices of each IOMMU group."""

    def __init__(self) -> None:
        self._devices: dict[int, set[PciAddress]] = {}

    def check(self, session: Session, device: PciAddress) -> None:
        """Check that the device needs the ITS that its group has.

        :raise RefusedError: when another attached device of the group needs another one.
        """
        group = session.host_device(device).iommu_group
        other = next(iter(self._devices.get(group, ())), None)
        if other is not None and session.its_of(other) != session.its_of(device):
            raise RefusedError(
                f"{device}: IOMMU group {group} shares one translation, but {device} needs ITS "
                f"{session.its_of(device)} and {other} needs ITS {session.its_of(other)}; assign "
                "only one of them"
            )

    def join(self, session: Session, device: PciAddress) -> None:
        """Count an attached device."""
        self._devices.setdefault(session.host_device(device).iommu_group, set()).add(device)

    def leave(self, session: Session, device: PciAddress) -> None:
        """Count it no more."""
        self._devices[session.host_device(device).iommu_group].discard(device)


@hookimpl
def vmm_msi_detach_device(session: Session, device: PciAddress) -> bool:
    """Detach."""
    session.state(S2Pool).detach(session, device)
    session.state(_Groups).leave(session, device)
    return True


@hookimpl
def vmm_msi_bind_doorbell(session: Session, device: PciAddress) -> bool | None:
    """Map gDB -> hDB in the device's stage 2."""
    if _mode(session) == "vsmmu":
        return None
    session.state(DoorbellMaps).acquire(session, device, session.state(S2Pool).of(device))
    return True


@hookimpl
def vmm_msi_prepare_msi(session: Session, device: PciAddress) -> Iova:
    """Write the guest's gIOVA into the device; in mode ``vsmmu`` the kernel picks the slot.

    :raise RefusedError: when the slot lies behind the window that the guest was told of.
    """
    if _mode(session) == "vsmmu":
        programmed = session.backend.prepare_msi(device)
        if programmed > SW_MSI_WINDOW.last:
            raise RefusedError(
                f"{device}: the kernel gives it the doorbell address {programmed}, outside of the "
                f"window {SW_MSI_WINDOW}; with host pages of {session.backend.page_size >> 10}K it "
                f"has room for {SW_MSI_WINDOW.size // session.backend.page_size} ITSes"
            )
        return programmed
    return session.backend.program_msi(device, guest_doorbell(session, device))
