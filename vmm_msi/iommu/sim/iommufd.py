"""A simulated file descriptor of /dev/iommu, with the rules between its objects.

Linux ``drivers/iommu/iommufd``: objects refer to each other, and a refused call changes none of
them. Each method is one ioctl, or the function behind one of VFIO's ioctls, and names the
functions whose checks it makes, in the same order.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from vmm_msi.errors import BackendError
from vmm_msi.iommu import rules
from vmm_msi.iommu.sim.core import IommuCore
from vmm_msi.iommu.sim.iopt import FilledTable, IoPageTable
from vmm_msi.iommu.sim.msi_pages import MsiPages
from vmm_msi.iommu.sim.objects import (
    FdGroup,
    Ioas,
    IommufdDevice,
    NestedHwpt,
    Object,
    PagingHwpt,
    SteConfig,
    Vdevice,
    Viommu,
    another_smmu,
)
from vmm_msi.iommu.sim.page_table import PageTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_msi.iommu.sim.objects import GuestSte, Hwpt
    from vmm_msi.types import HostDevice, HostTopology

ObjectT = TypeVar("ObjectT", bound=Object)

_U64 = (1 << 64) - 1
#: Width of the input addresses of a table that is not a nest parent: VA_BITS of the kernel.
_STAGE1_BITS = 48


class SimIommufd(MsiPages):
    """A simulated open /dev/iommu.

    :param core: the groups of the host, shared by all its file descriptors.
    :param first: id of the first object.
    """

    def __init__(self, host: HostTopology, core: IommuCore | None = None, first: int = 1) -> None:
        super().__init__(host.granule)
        self._host = host
        self._core = core or IommuCore(host)
        self._objects: dict[int, Object] = {}
        self._groups: dict[int, FdGroup] = {}
        self._next = first

    def _add(self, new: ObjectT) -> ObjectT:
        self._objects[new.id] = new
        self._next += 1
        return new

    def _get(self, number: int, kind: type[ObjectT]) -> ObjectT:
        """``iommufd_get_object``: ENOENT for no object, or one of another type."""
        existing = self._objects.get(number)
        if not isinstance(existing, kind):
            raise rules.OBJECT_ID.refusal(
                errno.ENOENT, f"object {number}: is not of type {kind.__name__}"
            )
        return existing

    def bind(self, device: HostDevice) -> int:
        """VFIO_DEVICE_BIND_IOMMUFD: ``iommufd_device_bind``; return the device's id.

        :raise BackendError: see :meth:`IommuCore.claim`.
        """
        core = self._core.claim(device, self)
        group = self._groups.get(core.number)
        if group is None:
            group = self._groups[core.number] = FdGroup(core, self)
        bound = self._add(IommufdDevice(self._next, device, group))
        group.devices[device.address] = bound
        return bound.id

    def unbind(self, dev_id: int) -> None:
        """Close of the VFIO device: ``vfio_iommufd_physical_unbind``.

        The device is detached, its vDEVICE destroyed (``iommufd_device_remove_vdev``, which keeps
        the id allocated). The group's slots are forgotten with its last device.
        """
        device = self._get(dev_id, IommufdDevice)
        self.detach(dev_id)
        if device.vdevice is not None:
            self._destroy(device.vdevice)
        del self._objects[dev_id]
        group = device.group
        self._core.release(group.core)
        del group.devices[device.host.address]
        if not group.devices:
            del self._groups[group.core.number]

    def ioas_alloc(self) -> int:
        """IOMMU_IOAS_ALLOC; return the IOAS's id."""
        return self._add(Ioas(self._next, IoPageTable(self.page_size))).id

    def ioas_map(self, ioas_id: int, iova: int, size: int, address: int) -> None:
        """IOMMU_IOAS_MAP with a fixed IOVA: ``iommufd_ioas_map``.

        :param address: physical address of the memory.
        :raise BackendError: EOVERFLOW for an IOVA or a size of 2^64 - 1; ENOENT for the id; the
            errors of :meth:`IoPageTable.map`.
        """
        if _U64 in {iova, size}:
            raise rules.MAP_ARGUMENTS.refusal(
                errno.EOVERFLOW, f"IOMMU_IOAS_MAP of {iova:#x}, {size:#x} bytes"
            )
        self._get(ioas_id, Ioas).iopt.map(iova, size, address)

    def ioas_unmap(self, ioas_id: int, iova: int, size: int) -> int:
        """IOMMU_IOAS_UNMAP: ``iommufd_ioas_unmap``; return the number of bytes unmapped.

        ``0, 2**64 - 1`` unmaps everything, even if nothing is mapped.

        :raise BackendError: ENOENT for the id; EOVERFLOW for an IOVA or a size of 2^64 - 1; the
            errors of :meth:`IoPageTable.unmap`.
        """
        iopt = self._get(ioas_id, Ioas).iopt
        if (iova, size) == (0, _U64):
            return iopt.unmap_all()
        if _U64 in {iova, size}:
            raise rules.UNMAP_ARGUMENTS.refusal(
                errno.EOVERFLOW, f"IOMMU_IOAS_UNMAP of {iova:#x}, {size:#x} bytes"
            )
        return iopt.unmap(iova, size)

    def hwpt_alloc(self, dev_id: int, pt_id: int, *, nest_parent: bool = True) -> int:
        """IOMMU_HWPT_ALLOC without data: ``iommufd_hwpt_alloc``; return the HWPT's id.

        :raise BackendError: ENOENT for the device; EINVAL for an object that has no HWPTs,
            EOPNOTSUPP for one whose HWPTs require data; the errors of :meth:`_paging_alloc`.
        """
        device = self._get(dev_id, IommufdDevice)
        ioas = self._hwpt_parent(device, pt_id)
        if not isinstance(ioas, Ioas):
            on_viommu = isinstance(ioas, Viommu)
            rule = rules.HWPT_ON_VIOMMU_NEEDS_DATA if on_viommu else rules.HWPT_NEEDS_DATA
            raise rule.refusal(errno.EOPNOTSUPP, f"object {pt_id}: a HWPT on it requires data")
        hwpt = self._paging_alloc(device, ioas, nest_parent=nest_parent)
        self._fill(hwpt)
        return self._add(hwpt).id

    def _hwpt_parent(self, device: IommufdDevice, pt_id: int) -> Ioas | PagingHwpt | Viommu:
        """Return the parent object of a new HWPT: the first half of ``iommufd_hwpt_alloc``."""
        parent = self._objects.get(pt_id)
        if not isinstance(parent, Ioas | PagingHwpt | Viommu):
            raise rules.HWPT_PARENT.refusal(
                errno.EINVAL, f"object {pt_id}: cannot be the parent of a HWPT"
            )
        if isinstance(parent, Viommu) and parent.hwpt.smmu != device.host.smmu:
            raise another_smmu(device, parent.hwpt, rules.HWPT_PARENT)
        return parent

    def _paging_alloc(self, device: IommufdDevice, ioas: Ioas, *, nest_parent: bool) -> PagingHwpt:
        """``iommufd_hwpt_paging_alloc``, without filling the table.

        :raise BackendError: EOPNOTSUPP when the SMMU cannot nest
            (``arm_smmu_domain_alloc_paging_flags``).
        """
        smmu = self._smmu(device)
        if nest_parent and not self._host.smmu_by_id[smmu].nested:
            raise rules.TWO_STAGES.refusal(
                errno.EOPNOTSUPP, f"SMMU {smmu}: does not implement two stages"
            )
        bits = self._core.output_bits if nest_parent else _STAGE1_BITS
        filled = FilledTable(PageTable(self._host.granule), bits)
        return PagingHwpt(self._next, ioas, smmu, filled, nest_parent)

    @staticmethod
    def _fill(hwpt: PagingHwpt) -> None:
        """Fill a table from its IOAS: ``iopt_table_add_domain``."""
        hwpt.ioas.iopt.fill(hwpt.filled)
        hwpt.ioas.hwpts.append(hwpt)
        hwpt.ioas.users += 1

    def viommu_alloc(self, dev_id: int, hwpt_id: int) -> int:
        """IOMMU_VIOMMU_ALLOC of type ARM_SMMUV3: ``iommufd_viommu_alloc_ioctl``; return its id.

        :raise BackendError: ENOENT for an id; EOPNOTSUPP when the device's SMMU cannot nest
            (``arm_smmu_get_viommu_size``); EINVAL when the HWPT is not a nest parent or
            belongs to another SMMU (``arm_vsmmu_init``).
        """
        device = self._get(dev_id, IommufdDevice)
        smmu = self._smmu(device)
        if not self._host.smmu_by_id[smmu].nested:
            raise rules.VIOMMU_TWO_STAGES.refusal(
                errno.EOPNOTSUPP, f"SMMU {smmu}: does not implement two stages"
            )
        hwpt = self._get(hwpt_id, PagingHwpt)
        if not hwpt.nest_parent:
            raise rules.VIOMMU_PARENT.refusal(errno.EINVAL, f"HWPT {hwpt_id}: is not a nest parent")
        if hwpt.smmu != smmu:
            raise another_smmu(device, hwpt, rules.VIOMMU_SMMU)
        hwpt.users += 1
        return self._add(Viommu(self._next, hwpt)).id

    def vdevice_alloc(self, viommu_id: int, dev_id: int, virt_id: int) -> int:
        """IOMMU_VDEVICE_ALLOC: ``iommufd_vdevice_alloc_ioctl``; return its id.

        :raise BackendError: ENOENT for an id; EINVAL when the device is behind another SMMU;
            EEXIST when it has a vDEVICE, or the virtual StreamID is taken; EOPNOTSUPP when it has
            more than one StreamID (``arm_vsmmu_vdevice_init``).
        """
        viommu = self._get(viommu_id, Viommu)
        device = self._get(dev_id, IommufdDevice)
        address = device.host.address
        if viommu.hwpt.smmu != device.host.smmu:
            raise another_smmu(device, viommu.hwpt, rules.VDEVICE_SMMU)
        if device.vdevice is not None:
            raise rules.VDEVICE_ONCE.refusal(errno.EEXIST, f"{address}: has a vDEVICE already")
        if virt_id in viommu.vdevices:
            raise rules.VDEVICE_ONCE.refusal(
                errno.EEXIST, f"vIOMMU {viommu_id}: StreamID {virt_id:#x} is taken"
            )
        if device.host.streams != 1:
            raise rules.VDEVICE_STREAMS.refusal(
                errno.EOPNOTSUPP,
                f"{address}: has {device.host.streams} StreamIDs, a vDEVICE has one",
            )
        vdevice = self._add(Vdevice(self._next, viommu, device, virt_id))
        device.vdevice = viommu.vdevices[virt_id] = viommu.by_address[address] = vdevice
        viommu.users += 1
        return vdevice.id

    def hwpt_alloc_nested(self, dev_id: int, viommu_id: int, ste: GuestSte) -> int:
        """IOMMU_HWPT_ALLOC with a stream table entry: ``arm_vsmmu_alloc_domain_nested``.

        :return: the HWPT's id.
        :raise BackendError: ENOENT for the device; EINVAL for an object that has no HWPTs, or a
            vIOMMU of another SMMU; EOPNOTSUPP for an IOAS or a HWPT, which do not take such data;
            EIO for an invalid entry (``arm_smmu_validate_vste``).
        """
        device = self._get(dev_id, IommufdDevice)
        viommu = self._hwpt_parent(device, viommu_id)
        if not isinstance(viommu, Viommu):
            on_ioas = isinstance(viommu, Ioas)
            rule = rules.HWPT_TAKES_NO_DATA if on_ioas else rules.HWPT_NEEDS_DATA
            raise rule.refusal(errno.EOPNOTSUPP, f"object {viommu_id}: is not a vIOMMU")
        config, stage1 = ste
        if config is None or (config is SteConfig.TRANSLATE) != (stage1 is not None):
            raise rules.VALID_STE.refusal(
                errno.EIO, f"vIOMMU {viommu_id}: the stream table entry is not valid"
            )
        viommu.users += 1
        return self._add(NestedHwpt(self._next, viommu, config, stage1)).id

    def attach(self, dev_id: int, pt_id: int) -> None:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT of a detached device: ``iommufd_device_attach``.

        :raise BackendError: ENOENT for an id; EINVAL when it is neither an IOAS nor a HWPT; EBUSY
            when the device is attached; the errors of :meth:`_attach`.
        """
        device = self._get(dev_id, IommufdDevice)
        target = self._target(pt_id)
        if dev_id in device.group.attached:
            raise rules.ATTACHED_ONCE.refusal(
                errno.EBUSY, f"{device.host.address}: attached already"
            )
        if not isinstance(target, Ioas):
            self._attach(device, target)
        elif not self._join_auto(target, partial(self._attach, device)):
            self._attach_new(device, target)

    def _target(self, pt_id: int) -> Ioas | Hwpt:
        """``iommufd_device_change_pt``."""
        target = self._get(pt_id, Object)
        if not isinstance(target, Ioas | PagingHwpt | NestedHwpt):
            raise rules.ATTACH_TARGET.refusal(
                errno.EINVAL, f"object {pt_id}: is neither an IOAS nor a HWPT"
            )
        return target

    @staticmethod
    def _join_auto(ioas: Ioas, join: Callable[[PagingHwpt], None]) -> bool:
        """Join one of the IOAS's own HWPTs: ``iommufd_device_auto_get_domain``.

        :return: whether a HWPT was joined.
        :raise BackendError: the first error other than EINVAL; after EINVAL the next is tried.
        """
        for hwpt in [hwpt for hwpt in ioas.hwpts if hwpt.auto]:
            try:
                join(hwpt)
            except BackendError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return True
        return False

    def _attach_new(self, device: IommufdDevice, ioas: Ioas) -> None:
        """Attach to a new HWPT of the IOAS, which is filled after the attach."""
        hwpt = self._paging_alloc(device, ioas, nest_parent=False)
        self._attach(device, hwpt)
        try:
            self._fill(hwpt)
        except BackendError:
            self._detach(device)
            raise
        hwpt.auto = True
        self._add(hwpt)

    def _attach(self, device: IommufdDevice, hwpt: Hwpt) -> None:
        """``iommufd_hw_pagetable_attach``.

        :raise BackendError: EINVAL when the group is attached to another HWPT, or the device has
            a HW MSI region beside its window; EADDRINUSE when a reserved region of the device is
            mapped; iommu_map's error for a slot; the errors of :meth:`IommuCore.attach`.
        """
        group, iopt = device.group, hwpt.paging.ioas.iopt
        if group.hwpt not in {None, hwpt}:
            raise rules.GROUP_HWPT.refusal(
                errno.EINVAL,
                f"{device.host.address}: IOMMU group {device.host.iommu_group} is attached "
                "elsewhere",
            )
        group.sw_msi_start = self._window_start(device)
        self._reserve(device, iopt)
        if device.host.sw_msi_window is not None and device.host.hw_msi is not None:
            # iommufd_device_do_replace does not ask for this check.
            iopt.release(device)
            raise rules.MSI_REGIONS.refusal(
                errno.EINVAL,
                f"{device.host.address}: its MSIs to {device.host.hw_msi} bypass the SMMU; assign "
                "a device without such a region",
            )
        if group.hwpt is None:
            try:
                self._install_required(group, hwpt.paging)
                self._core.attach(group.core, hwpt, group)
            except BackendError:
                iopt.release(device)
                raise
            group.hwpt = hwpt
        group.attached[device.id] = device
        hwpt.users += 1

    @staticmethod
    def _reserve(device: IommufdDevice, iopt: IoPageTable) -> None:
        """``iopt_table_enforce_dev_resv_regions``, without the check of MSI regions."""
        try:
            for region in device.enforced_regions:
                iopt.reserve(region.base, region.last, device)
        except BackendError as error:
            iopt.release(device)
            raise error.seen_as(error.errno, f"{device.host.address}: {error.reason}") from error

    def replace(self, dev_id: int, pt_id: int) -> None:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT of an attached device: ``iommufd_device_replace``.

        :raise BackendError: ENOENT for an id; EINVAL when it is neither an IOAS nor a HWPT, or
            the device is not attached; the errors of :meth:`_replace`.
        """
        device = self._get(dev_id, IommufdDevice)
        target = self._target(pt_id)
        if dev_id not in device.group.attached:
            raise rules.REPLACES_ATTACHED.refusal(
                errno.EINVAL, f"{device.host.address}: is not attached"
            )
        if not isinstance(target, Ioas):
            self._replace(device.group, target)
        elif not self._join_auto(target, partial(self._replace, device.group)):
            hwpt = self._paging_alloc(device, target, nest_parent=False)
            self._fill(hwpt)
            try:
                self._replace(device.group, hwpt)
            except BackendError:
                self._unfill(hwpt)
                raise
            hwpt.auto = True
            self._add(hwpt)

    def _replace(self, group: FdGroup, hwpt: Hwpt) -> None:
        """``iommufd_device_do_replace``: all attached devices of the group move.

        When the new HWPT has the same IOAS as the old one and is refused, the kernel removes the
        devices' reservations from the IOAS although they stay attached to it.

        :raise BackendError: EADDRINUSE when a reserved region is mapped in the new IOAS;
            iommu_map's error for a slot; the errors of :meth:`IommuCore.attach`.
        """
        old = group.hwpt
        if old is None or old is hwpt:
            return
        iopt, old_iopt = hwpt.paging.ioas.iopt, old.paging.ioas.iopt
        try:
            if iopt is not old_iopt:
                for device in group.attached.values():
                    self._reserve(device, iopt)
            self._install_required(group, hwpt.paging)
            self._core.attach(group.core, hwpt, group)
        except BackendError:
            for device in group.attached.values():
                iopt.release(device)
            raise
        if iopt is not old_iopt:
            for device in group.attached.values():
                old_iopt.release(device)
        group.hwpt = hwpt
        hwpt.users += len(group.attached)
        old.users -= len(group.attached)
        self._put(old)

    def detach(self, dev_id: int) -> None:
        """VFIO_DEVICE_DETACH_IOMMUFD_PT: ``vfio_iommufd_physical_detach_ioas``.

        The group is blocked when its last device is detached.
        """
        device = self._get(dev_id, IommufdDevice)
        if dev_id in device.group.attached:
            self._put(self._detach(device))

    def _detach(self, device: IommufdDevice) -> Hwpt:
        """``iommufd_hw_pagetable_detach``; return the HWPT that the device was attached to."""
        group = device.group
        hwpt = group.hwpt
        if hwpt is None:
            raise rules.DETACHES_ATTACHED.refusal(
                errno.EINVAL, f"{device.host.address}: is not attached"
            )
        del group.attached[device.id]
        if not group.attached:
            self._core.detach(group.core)
            group.hwpt = None
        hwpt.paging.ioas.iopt.release(device)
        hwpt.users -= 1
        return hwpt

    def _put(self, hwpt: Hwpt) -> None:
        """``iommufd_hw_pagetable_put``: destroy an ``auto`` HWPT with its last device."""
        if isinstance(hwpt, PagingHwpt) and hwpt.auto and not hwpt.users:
            self._destroy(hwpt)

    def destroy(self, number: int) -> None:
        """IOMMU_DESTROY.

        :raise BackendError: ENOENT for the id; EBUSY while another object, or VFIO for a device,
            refers to the object: ``iommufd_object_remove``.
        """
        target = self._get(number, Object)
        if target.users or isinstance(target, IommufdDevice):
            raise rules.OBJECT_IN_USE.refusal(
                errno.EBUSY, f"object {number}: {target.users} others refer to it"
            )
        self._destroy(target)

    def _destroy(self, target: Object) -> None:
        match target:
            case PagingHwpt():
                self._unfill(target)
            case Viommu():
                target.hwpt.users -= 1
            case Vdevice():
                target.device.vdevice = None
                del target.viommu.vdevices[target.virt_id]
                del target.viommu.by_address[target.device.host.address]
                target.viommu.users -= 1
            case NestedHwpt():
                target.viommu.users -= 1
        del self._objects[target.id]

    @staticmethod
    def _unfill(hwpt: PagingHwpt) -> None:
        """``iommufd_hwpt_paging_destroy``."""
        hwpt.ioas.hwpts.remove(hwpt)
        hwpt.ioas.iopt.leave(hwpt.filled)
        hwpt.ioas.users -= 1

    @staticmethod
    def _smmu(device: IommufdDevice) -> int:
        if device.host.smmu is None:
            raise rules.NO_IOMMU.refusal(
                errno.ENODEV, f"{device.host.address}: is not behind an SMMU"
            )
        return device.host.smmu

    def hwpt(self, hwpt_id: int) -> PagingHwpt:
        """Return a paging HWPT by id.

        :raise BackendError: ENOENT for an id of no paging HWPT.
        """
        return self._get(hwpt_id, PagingHwpt)
