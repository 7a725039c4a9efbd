"""One file descriptor of /dev/iommu, and the rules between its objects.

Linux ``drivers/iommu/iommufd``: objects refer to each other, and a refused call leaves all of
them as they were. Each method is one ioctl, or what VFIO calls for one of its own, and names the
functions whose checks it makes, in their order.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from vmm_msi.errors import BackendError
from vmm_msi.iommu.allocators import SwMsiSlots
from vmm_msi.iommu.sim.core import IommuCore
from vmm_msi.iommu.sim.iopt import Filled, IoPageTable
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
)
from vmm_msi.iommu.sim.page_table import PageTable
from vmm_msi.types import Iova, Pa, ReservedKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_msi.iommu.sim.objects import Hwpt
    from vmm_msi.iommu.sim.smmu import Stage1Config
    from vmm_msi.types import HostDevice, HostTopology, ReservedRegion

ObjectT = TypeVar("ObjectT", bound=Object)

_U64 = (1 << 64) - 1
#: Width of the input addresses of a table that is no nesting parent: VA_BITS of the kernel.
_STAGE1_BITS = 48


class Iommufd:
    """An open /dev/iommu.

    :param core: the groups of the host, shared by all its file descriptors.
    """

    def __init__(self, host: HostTopology, core: IommuCore | None = None) -> None:
        self.slots = SwMsiSlots()
        self._host = host
        self._core = core or IommuCore(host)
        self._objects: dict[int, Object] = {}
        self._groups: dict[int, FdGroup] = {}
        self._next = 1

    @property
    def page_size(self) -> int:
        """PAGE_SIZE in bytes."""
        return self._host.granule

    def _add(self, made: ObjectT) -> ObjectT:
        self._objects[made.id] = made
        self._next += 1
        return made

    def _get(self, number: int, kind: type[ObjectT]) -> ObjectT:
        """``iommufd_get_object``: ENOENT for no object, or one of another type."""
        found = self._objects.get(number)
        if not isinstance(found, kind):
            raise BackendError(errno.ENOENT, f"object {number}: is no {kind.__name__}")
        return found

    def bind(self, device: HostDevice) -> int:
        """VFIO_DEVICE_BIND_IOMMUFD: ``iommufd_device_bind``; return the device's id.

        :raise BackendError: EPERM when another file descriptor owns the group.
        """
        core = self._core.claim(device, self)
        group = self._groups.get(core.number)
        if group is None:
            group = self._groups[core.number] = FdGroup(core, self)
        group.bound += 1
        return self._add(IommufdDevice(self._next, device, group)).id

    def unbind(self, device_id: int) -> None:
        """Close of the VFIO device: ``vfio_iommufd_physical_unbind``.

        It is detached, its vDEVICE destroyed (``iommufd_device_remove_vdev``, whose id stays
        taken), and with the last device of the group the slots it used are forgotten.
        """
        device = self._get(device_id, IommufdDevice)
        self.detach(device_id)
        if device.vdevice is not None:
            self._destroy(device.vdevice)
        del self._objects[device_id]
        group = device.group
        self._core.release(group.core)
        group.bound -= 1
        if not group.bound:
            del self._groups[group.core.number]

    def ioas_alloc(self) -> int:
        """IOMMU_IOAS_ALLOC; return the IOAS's id."""
        return self._add(Ioas(self._next, IoPageTable(self.page_size))).id

    def ioas_map(self, ioas_id: int, iova: int, size: int, output: int) -> None:
        """IOMMU_IOAS_MAP with a fixed IOVA: ``iommufd_ioas_map``.

        :raise BackendError: EOVERFLOW for an IOVA or a size of 2^64 - 1; ENOENT for the id; what
            :meth:`IoPageTable.map` raises.
        """
        if _U64 in {iova, size}:
            raise BackendError(errno.EOVERFLOW, f"IOMMU_IOAS_MAP of {iova:#x}, {size:#x} bytes")
        self._get(ioas_id, Ioas).iopt.map(iova, size, output)

    def ioas_unmap(self, ioas_id: int, iova: int, size: int) -> int:
        """IOMMU_IOAS_UNMAP: ``iommufd_ioas_unmap``; return the bytes unmapped.

        ``0, 2**64 - 1`` unmaps everything, and may find nothing.

        :raise BackendError: ENOENT for the id; EOVERFLOW for an IOVA or a size of 2^64 - 1; what
            :meth:`IoPageTable.unmap` raises.
        """
        iopt = self._get(ioas_id, Ioas).iopt
        if (iova, size) == (0, _U64):
            return iopt.unmap_all()
        if _U64 in {iova, size}:
            raise BackendError(errno.EOVERFLOW, f"IOMMU_IOAS_UNMAP of {iova:#x}, {size:#x} bytes")
        return iopt.unmap(iova, size)

    def hwpt_alloc(self, device_id: int, pt_id: int, *, nest_parent: bool = True) -> int:
        """IOMMU_HWPT_ALLOC without data: ``iommufd_hwpt_alloc``; return the HWPT's id.

        :raise BackendError: ENOENT for the device; EINVAL for another object than an IOAS, and
            EOPNOTSUPP for one that takes data; what :meth:`_paging_alloc` raises.
        """
        device = self._get(device_id, IommufdDevice)
        ioas = self._hwpt_on(device, pt_id)
        if not isinstance(ioas, Ioas):
            raise BackendError(errno.EOPNOTSUPP, f"object {pt_id}: a HWPT on it takes data")
        hwpt = self._paging_alloc(device, ioas, nest_parent=nest_parent)
        self._fill(hwpt)
        return self._add(hwpt).id

    def _hwpt_on(self, device: IommufdDevice, pt_id: int) -> Ioas | PagingHwpt | Viommu:
        """Return what a HWPT is to be made on: the first half of ``iommufd_hwpt_alloc``."""
        found = self._objects.get(pt_id)
        if not isinstance(found, Ioas | PagingHwpt | Viommu):
            raise BackendError(errno.EINVAL, f"object {pt_id}: no HWPT can be made on it")
        if isinstance(found, Viommu) and found.hwpt.smmu != device.host.smmu:
            raise self._another_smmu(device, found.hwpt)
        return found

    def _paging_alloc(self, device: IommufdDevice, ioas: Ioas, *, nest_parent: bool) -> PagingHwpt:
        """``iommufd_hwpt_paging_alloc``, up to what fills the table.

        :raise BackendError: EOPNOTSUPP when the SMMU cannot nest
            (``arm_smmu_domain_alloc_paging_flags``).
        """
        smmu = self._smmu(device)
        if nest_parent and not self._host.smmu_by_id[smmu].nested:
            raise BackendError(errno.EOPNOTSUPP, f"SMMU {smmu}: does not implement two stages")
        bits = self._core.output_bits if nest_parent else _STAGE1_BITS
        filled = Filled(PageTable(self._host.granule), bits)
        return PagingHwpt(self._next, ioas, smmu, filled, nest_parent)

    @staticmethod
    def _fill(hwpt: PagingHwpt) -> None:
        """Fill a table from its IOAS: ``iopt_table_add_domain``."""
        hwpt.ioas.iopt.fill(hwpt.filled)
        hwpt.ioas.hwpts.append(hwpt)
        hwpt.ioas.users += 1

    def viommu_alloc(self, device_id: int, hwpt_id: int) -> int:
        """IOMMU_VIOMMU_ALLOC of type ARM_SMMUV3: ``iommufd_viommu_alloc_ioctl``; return its id.

        :raise BackendError: ENOENT for an id; EOPNOTSUPP when the device's SMMU cannot nest
            (``arm_smmu_get_viommu_size``); EINVAL when the HWPT is no nesting parent or another
            SMMU's (``arm_vsmmu_init``).
        """
        device = self._get(device_id, IommufdDevice)
        smmu = self._smmu(device)
        if not self._host.smmu_by_id[smmu].nested:
            raise BackendError(errno.EOPNOTSUPP, f"SMMU {smmu}: does not implement two stages")
        hwpt = self._get(hwpt_id, PagingHwpt)
        if not hwpt.nest_parent:
            raise BackendError(errno.EINVAL, f"HWPT {hwpt_id}: is no nesting parent")
        if hwpt.smmu != smmu:
            raise self._another_smmu(device, hwpt)
        hwpt.users += 1
        return self._add(Viommu(self._next, hwpt)).id

    def vdevice_alloc(self, viommu_id: int, device_id: int, virt_id: int) -> int:
        """IOMMU_VDEVICE_ALLOC: ``iommufd_vdevice_alloc_ioctl``; return its id.

        :raise BackendError: ENOENT for an id; EINVAL when the device is behind another SMMU;
            EEXIST when it has a vDEVICE, or the virtual StreamID is taken; EOPNOTSUPP when it has
            more than one StreamID (``arm_vsmmu_vdevice_init``).
        """
        viommu = self._get(viommu_id, Viommu)
        device = self._get(device_id, IommufdDevice)
        address = device.host.address
        if viommu.hwpt.smmu != device.host.smmu:
            raise self._another_smmu(device, viommu.hwpt)
        if device.vdevice is not None:
            raise BackendError(errno.EEXIST, f"{address}: has a vDEVICE already")
        if virt_id in viommu.vdevices:
            raise BackendError(errno.EEXIST, f"vIOMMU {viommu_id}: StreamID {virt_id:#x} is taken")
        if device.host.streams != 1:
            raise BackendError(
                errno.EOPNOTSUPP,
                f"{address}: has {device.host.streams} StreamIDs, a vDEVICE has one",
            )
        vdevice = self._add(Vdevice(self._next, viommu, device, virt_id))
        device.vdevice = viommu.vdevices[virt_id] = viommu.of_device[address] = vdevice
        viommu.users += 1
        return vdevice.id

    def hwpt_alloc_nested(
        self,
        device_id: int,
        viommu_id: int,
        config: SteConfig | None,
        stage1: Stage1Config | None = None,
    ) -> int:
        """IOMMU_HWPT_ALLOC with a stream table entry: ``arm_vsmmu_alloc_domain_nested``.

        :param config: None for an entry with bits that a guest may not set.
        :return: the HWPT's id.
        :raise BackendError: ENOENT for the device; EINVAL for another object than a vIOMMU, or
            one of another SMMU; EOPNOTSUPP for an IOAS or a HWPT, which take no such data; EIO
            for an entry that is not valid (``arm_smmu_validate_vste``).
        """
        device = self._get(device_id, IommufdDevice)
        viommu = self._hwpt_on(device, viommu_id)
        if not isinstance(viommu, Viommu):
            raise BackendError(errno.EOPNOTSUPP, f"object {viommu_id}: is no vIOMMU")
        if config is None or (config is SteConfig.TRANSLATE) != (stage1 is not None):
            raise BackendError(
                errno.EIO, f"vIOMMU {viommu_id}: the stream table entry is not valid"
            )
        viommu.users += 1
        return self._add(NestedHwpt(self._next, viommu, config, stage1)).id

    def attach(self, device_id: int, pt_id: int) -> None:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT of a detached device: ``iommufd_device_attach``.

        :raise BackendError: ENOENT for an id; EINVAL when it is neither an IOAS nor a HWPT; EBUSY
            when the device is attached; what :meth:`_attach` raises.
        """
        device = self._get(device_id, IommufdDevice)
        target = self._target(pt_id)
        if device_id in device.group.attached:
            raise BackendError(errno.EBUSY, f"{device.host.address}: attached already")
        if not isinstance(target, Ioas):
            self._attach(device, target)
        elif not self._join_auto(target, partial(self._attach, device)):
            self._attach_new(device, target)

    def _target(self, pt_id: int) -> Ioas | Hwpt:
        """``iommufd_device_change_pt``."""
        found = self._get(pt_id, Object)
        if not isinstance(found, Ioas | PagingHwpt | NestedHwpt):
            raise BackendError(errno.EINVAL, f"object {pt_id}: is neither an IOAS nor a HWPT")
        return found

    @staticmethod
    def _join_auto(ioas: Ioas, join: Callable[[PagingHwpt], None]) -> bool:
        """Try the IOAS's own HWPTs: ``iommufd_device_auto_get_domain``; tell whether one did.

        :raise BackendError: other refusals than EINVAL, which means that the next is tried.
        """
        for hwpt in [each for each in ioas.hwpts if each.auto]:
            try:
                join(hwpt)
            except BackendError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return True
        return False

    def _attach_new(self, device: IommufdDevice, ioas: Ioas) -> None:
        """Attach to a new HWPT of the IOAS, which is filled after it is attached to."""
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

        :raise BackendError: EINVAL when the group is attached to another HWPT; EADDRINUSE when a
            reserved region of the device is mapped; what iommu_map returns for a slot; what
            :meth:`IommuCore.attach` raises.
        """
        group, iopt = device.group, hwpt.paging.ioas.iopt
        if group.hwpt not in {None, hwpt}:
            raise BackendError(
                errno.EINVAL,
                f"{device.host.address}: IOMMU group {device.host.iommu_group} is attached "
                "elsewhere",
            )
        window = device.host.sw_msi_window
        if window is not None:
            group.sw_msi_start = window.base
        self._reserve(device, iopt)
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
        """``iopt_table_enforce_dev_resv_regions``."""
        try:
            for region in _reserved(device.host):
                iopt.reserve(region.base, region.last, device)
        except BackendError as error:
            iopt.release(device)
            raise BackendError(error.errno, f"{device.host.address}: {error.reason}") from error

    def _install_required(self, group: FdGroup, hwpt: PagingHwpt) -> None:
        """``iommufd_group_setup_msi``."""
        for iova, page in group.required.items():
            self._install(hwpt, iova, page)

    def replace(self, device_id: int, pt_id: int) -> None:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT of an attached device: ``iommufd_device_replace``.

        :raise BackendError: ENOENT for an id; EINVAL when it is neither an IOAS nor a HWPT, or
            the device is not attached; what :meth:`_replace` raises.
        """
        device = self._get(device_id, IommufdDevice)
        target = self._target(pt_id)
        if device_id not in device.group.attached:
            raise BackendError(errno.EINVAL, f"{device.host.address}: is not attached")
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

        When the new HWPT is of the same IOAS as the old one and is refused, the kernel takes the
        reservations of the devices out of the IOAS although they stay attached to it.

        :raise BackendError: EADDRINUSE when a reserved region is mapped in the new IOAS; what
            iommu_map returns for a slot; what :meth:`IommuCore.attach` raises.
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

    def detach(self, device_id: int) -> None:
        """VFIO_DEVICE_DETACH_IOMMUFD_PT: ``vfio_iommufd_physical_detach_ioas``.

        The group is blocked when none of its devices is attached any more.
        """
        device = self._get(device_id, IommufdDevice)
        if device_id in device.group.attached:
            self._put(self._detach(device))

    def _detach(self, device: IommufdDevice) -> Hwpt:
        """``iommufd_hw_pagetable_detach``; return the HWPT, which is no longer referred to."""
        group = device.group
        hwpt = group.hwpt
        if hwpt is None:
            raise BackendError(errno.EINVAL, f"{device.host.address}: is not attached")
        del group.attached[device.id]
        if not group.attached:
            self._core.detach(group.core)
            group.hwpt = None
        hwpt.paging.ioas.iopt.release(device)
        hwpt.users -= 1
        return hwpt

    def _put(self, hwpt: Hwpt) -> None:
        """``iommufd_hw_pagetable_put``: what attaching made goes with the last device."""
        if isinstance(hwpt, PagingHwpt) and hwpt.auto and not hwpt.users:
            self._destroy(hwpt)

    def destroy(self, number: int) -> None:
        """IOMMU_DESTROY.

        :raise BackendError: ENOENT for the id; EBUSY while something refers to the object, which
            VFIO does to a device: ``iommufd_object_remove``.
        """
        found = self._get(number, Object)
        if found.users or isinstance(found, IommufdDevice):
            raise BackendError(errno.EBUSY, f"object {number}: {found.users} others refer to it")
        self._destroy(found)

    def _destroy(self, found: Object) -> None:
        match found:
            case PagingHwpt():
                self._unfill(found)
            case Viommu():
                found.hwpt.users -= 1
            case Vdevice():
                found.device.vdevice = None
                del found.viommu.vdevices[found.virt_id]
                del found.viommu.of_device[found.device.host.address]
                found.viommu.users -= 1
            case NestedHwpt():
                found.viommu.users -= 1
        del self._objects[found.id]

    @staticmethod
    def _unfill(hwpt: PagingHwpt) -> None:
        """``iommufd_hwpt_paging_destroy``."""
        hwpt.ioas.hwpts.remove(hwpt)
        hwpt.ioas.iopt.leave(hwpt.filled)
        hwpt.ioas.users -= 1

    def sw_msi(self, group: FdGroup, doorbell: Pa) -> Iova:
        """Return the page address that ``iommufd_sw_msi`` gives to devices of an attached group.

        :raise BackendError: EOVERFLOW when all slots are given out; what iommu_map returns.
        """
        page = doorbell.align_down(self.page_size)
        if group.hwpt is None or group.sw_msi_start is None:
            return Iova(page)
        iova = self.slots.get(group.sw_msi_start, page, self.page_size)
        self._install(group.hwpt.paging, iova, page)
        group.required[iova] = page
        return iova

    def _install(self, hwpt: PagingHwpt, iova: Iova, page: Pa) -> None:
        """``iommufd_sw_msi_install``: a raw iommu_map, once per table."""
        if iova not in hwpt.slots:
            hwpt.table.map(iova, page, self.page_size)
            hwpt.slots.add(iova)

    @staticmethod
    def _smmu(device: IommufdDevice) -> int:
        if device.host.smmu is None:
            raise BackendError(errno.ENODEV, f"{device.host.address}: is behind no SMMU")
        return device.host.smmu

    @staticmethod
    def _another_smmu(device: IommufdDevice, hwpt: PagingHwpt) -> BackendError:
        return BackendError(
            errno.EINVAL,
            f"{device.host.address}: is behind SMMU {device.host.smmu}, the S2 is SMMU "
            f"{hwpt.smmu}'s: one S2 parent per physical SMMU",
        )

    def hwpt(self, hwpt_id: int) -> PagingHwpt:
        """Return a table by id, to look into.

        :raise BackendError: ENOENT when there is none.
        """
        return self._get(hwpt_id, PagingHwpt)


def _reserved(device: HostDevice) -> list[ReservedRegion]:
    return [r for r in device.reserved if r.kind is not ReservedKind.DIRECT_RELAXABLE]
