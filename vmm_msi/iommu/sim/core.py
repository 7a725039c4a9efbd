"""The simulated IOMMU core and SMMUv3 driver: groups, their owners, their devices' IOMMU domains.

Linux ``drivers/iommu/iommu.c`` and ``drivers/iommu/arm/arm-smmu-v3``. All file descriptors of a
host share its groups.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu import rules
from vmm_msi.iommu.sim.objects import (
    CoreDomain,
    CoreGroup,
    Master,
    NestedHwpt,
    PagingHwpt,
    SteConfig,
)
from vmm_msi.types import ReservedKind

if TYPE_CHECKING:
    from vmm_msi.iommu.sim.objects import FdGroup, FileContext, IommuDomain, Msis, Viommu
    from vmm_msi.types import HostDevice, HostTopology, Iova, Its, Pa, PciAddress


class IommuCore:
    """The IOMMU groups of a host.

    :param output_bits: width of the SMMUs' output addresses, which is also the width of a stage
        2's input addresses (SMMU_IDR5.OAS).
    """

    def __init__(self, host: HostTopology, *, output_bits: int = 48) -> None:
        self.host = host
        self.output_bits = output_bits
        self._groups: dict[int, CoreGroup] = {}
        self._masters: dict[PciAddress, Master] = {}
        self._members: dict[int, list[HostDevice]] = {}
        for device in host.devices:
            self._members.setdefault(device.iommu_group, []).append(device)

    def group(self, device: HostDevice) -> CoreGroup:
        """Return the group of a device, with all its devices in it."""
        self.master(device)
        return self._groups[device.iommu_group]

    def master(self, device: HostDevice) -> Master:
        """Return the SMMU driver's state of a device."""
        existing = self._masters.get(device.address)
        if existing is not None:
            return existing
        number = device.iommu_group
        group = self._groups.setdefault(number, CoreGroup(number))
        members = self._members.get(number, [])
        for member in members if device in members else [device]:
            if member.address not in self._masters:
                master = self._masters[member.address] = Master(member, group.domain)
                group.masters.append(master)
        return self._masters[device.address]

    def claim(self, device: HostDevice, owner: FileContext) -> CoreGroup:
        """``iommufd_device_bind``, ``iommu_device_claim_dma_owner``: block the group.

        :raise BackendError: EINVAL for a device without an IOMMU; EPERM when an ITS of the group
            does not isolate MSIs, or another file descriptor owns the group; EINVAL when firmware
            requires a direct mapping for a device of the group.
        """
        group = self.group(device)
        if device.smmu is None:
            raise rules.NO_IOMMU.refusal(errno.EINVAL, f"{device.address}: is not behind an SMMU")
        for master in group.masters:
            self._check_isolation(master.host)
        if group.owners and group.owner is not owner:
            raise rules.ONE_OWNER.refusal(
                errno.EPERM,
                f"{device.address}: another file descriptor owns IOMMU group {group.number}; bind "
                "all of its devices to one",
            )
        if not group.owners:
            for master in group.masters:
                _check_direct(master.host)
            self._set_domain(group, CoreDomain.BLOCKED)
            group.owner = owner
        group.owners += 1
        return group

    def _check_isolation(self, device: HostDevice) -> None:
        """``iommu_group_has_isolated_msi`` for one device of the group, unless overridden."""
        if "iommufd" in self.host.unsafe_interrupts:
            return
        its = self.host.its_by_id.get(device.its) if device.its_group else None
        if its is None or not its.isolates_msis:
            raise rules.ISOLATED_MSIS.refusal(
                errno.EPERM,
                f"{device.address}: its MSIs are not isolated from those of other devices "
                f"({_why_not_isolated(device, its)}); use a device on an ITS",
            )

    def release(self, group: CoreGroup) -> None:
        """``iommu_device_release_dma_owner``."""
        group.owners -= 1
        if not group.owners:
            group.owner = None
            self._set_domain(group, CoreDomain.DEFAULT)

    def attach(self, group: CoreGroup, domain: PagingHwpt | NestedHwpt, handle: FdGroup) -> None:
        """``iommu_attach_group_handle``; ``iommu_replace_group_handle`` for an attached group.

        :raise BackendError: see :meth:`_attach_device`; nothing is changed.
        """
        self._set_domain(group, domain)
        group.handle = handle

    def detach(self, group: CoreGroup) -> None:
        """``iommu_detach_group_handle``: the owner's devices are blocked."""
        self._set_domain(group, CoreDomain.BLOCKED)
        group.handle = None

    def _set_domain(self, group: CoreGroup, domain: IommuDomain) -> None:
        """``__iommu_group_set_domain_internal``: all devices of the group, or none.

        A device that cannot be attached to its previous domain again is blocked:
        IOMMU_SET_DOMAIN_MUST_SUCCEED.
        """
        if group.domain is domain:
            return
        for number, master in enumerate(group.masters):
            try:
                self._attach_device(domain, master)
            except BackendError:
                for moved in group.masters[:number]:
                    try:
                        self._attach_device(group.domain, moved)
                    except BackendError:
                        self._attach_device(CoreDomain.BLOCKED, moved)
                raise
        group.domain = domain

    def _attach_device(self, domain: IommuDomain, master: Master) -> None:
        """Write a device's stream table entry.

        ``arm_smmu_attach_dev``, ``arm_smmu_attach_dev_nested``, ``arm_smmu_attach_dev_blocked``.
        The driver invalidates the SMMU's cached configuration, unless the entry stays the same
        (``arm_smmu_write_entry``).

        :raise BackendError: EINVAL when the domain belongs to another SMMU; ENOENT when it
            translates with a guest's stage 1 and the device has no vDEVICE on the vIOMMU
            (``arm_smmu_attach_prepare_vmaster``).
        """
        host = master.host
        vmaster = None
        if isinstance(domain, PagingHwpt | NestedHwpt):
            if domain.paging.smmu != host.smmu:
                nested = isinstance(domain, NestedHwpt)
                rule = rules.SMMU_OF_NESTED if nested else rules.SMMU_OF_DOMAIN
                raise rule.refusal(
                    errno.EINVAL, f"{host.address}: is not behind SMMU {domain.paging.smmu}"
                )
            if isinstance(domain, NestedHwpt):
                vmaster = self._vmaster(domain, host)
        master.cached = master.cached and _same_entry(master.domain, domain)
        master.domain, master.vmaster = domain, vmaster

    @staticmethod
    def _vmaster(domain: NestedHwpt, host: HostDevice) -> tuple[Viommu, int] | None:
        vdevice = domain.viommu.by_address.get(host.address)
        if vdevice is not None:
            return domain.viommu, vdevice.virt_id
        if domain.config is SteConfig.TRANSLATE:
            raise rules.VDEVICE_FIRST.refusal(
                errno.ENOENT,
                f"{host.address}: has no vDEVICE on the vIOMMU; every device of an IOMMU group "
                "must have one before a stage 1 is attached",
            )
        return None

    def prepare_msi(self, device: HostDevice, doorbell: Pa) -> Iova:
        """``iommu_dma_prepare_msi``; return the address of the device's MSIs to a doorbell.

        :raise BackendError: EOPNOTSUPP when the group is blocked; the errors of
            :meth:`~vmm_msi.iommu.sim.msi_pages.MsiPages.sw_msi`.
        """
        group = self.group(device)
        if group.handle is None:
            raise not_attached(device.address)
        return group.handle.context.sw_msi(group.handle, device, doorbell)

    def set_up_msis(self, device: HostDevice, msis: Msis) -> None:
        """Have a device's MSIs set up, with the address of :meth:`prepare_msi`.

        :raise BackendError: see :meth:`prepare_msi`.
        """
        address = self.prepare_msi(device, msis.doorbell)
        self.master(device).msis = msis
        msis.write(address)

    def free_msis(self, device: HostDevice) -> None:
        """Free a device's MSIs."""
        self.master(device).msis = None

    def retake_msis(self, device: HostDevice) -> None:
        """Make a device's MSIs, if they are set up, take their address again.

        :raise BackendError: see :meth:`prepare_msi`; the device keeps its address.
        """
        msis = self.master(device).msis
        if msis is not None:
            msis.write(self.prepare_msi(device, msis.doorbell))


def _check_direct(device: HostDevice) -> None:
    """``__iommu_device_set_domain`` of the blocking domain: ``require_direct``."""
    for region in device.reserved:
        if region.kind is ReservedKind.DIRECT:
            raise rules.DIRECT_REGION.refusal(
                errno.EINVAL,
                f"{device.address}: firmware requires a 1:1 mapping of {region}, so the device and "
                "its IOMMU group cannot be assigned",
            )


def not_attached(address: PciAddress) -> BackendError:
    """Return the error of ``iommu_dma_prepare_msi`` for a device of a blocked group."""
    return rules.GROUP_BLOCKED.refusal(
        errno.EOPNOTSUPP, f"{address}: is not attached, so its MSIs get no address; attach it first"
    )


def _why_not_isolated(device: HostDevice, its: Its | None) -> str:
    if its is None:
        number = f"ITS {device.its}, the first of its group," if device.its_group else "an ITS"
        return f"the host does not have {number}".removesuffix(",")
    return f"ITS {its.id} is a GICv2m" if its.gicv2m else f"ITS {its.id} has a pre-ITS"


def _same_entry(old: IommuDomain, new: IommuDomain) -> bool:
    """Return whether two domains with a guest's stage 1 give the same stream table entry."""
    return (
        isinstance(old, NestedHwpt)
        and isinstance(new, NestedHwpt)
        and old.config is new.config
        and old.paging is new.paging
        and old.stage1 is new.stage1
    )
