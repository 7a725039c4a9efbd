"""The objects of one iommufd file descriptor and the rules between them.

Linux ``include/uapi/linux/iommufd.h`` and ``drivers/iommu/iommufd``: IOAS, HWPT, vIOMMU, vDEVICE
and devices are numbered from one counter, refer to each other, and a refused call leaves all of
them as they were. Each method is one ioctl and names the functions whose checks it makes, in
their order.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from vmm_msi.errors import BackendError
from vmm_msi.iommu.cookies import SwMsiSlots
from vmm_msi.iommu.sim.pagetable import PageTable
from vmm_msi.model import Iova, Pa, ReservedKind

if TYPE_CHECKING:
    from vmm_msi.iommu.sim.smmu import Stage1Config
    from vmm_msi.model import HostDevice, HostTopology, ReservedRegion

ObjectT = TypeVar("ObjectT", bound="Object")


@dataclass(eq=False)
class Object:
    """What all objects have: an id, and how many others refer to it."""

    id: int
    users: int = field(default=0, kw_only=True)


@dataclass(eq=False)
class Ioas(Object):
    """An I/O address space: what user space mapped, and what it must leave alone.

    :param areas: size and output address by IOVA, which with nesting is an IPA.
    :param reserved: regions of the attached devices, counted.
    """

    areas: dict[int, tuple[int, int]] = field(default_factory=dict)
    reserved: Counter[ReservedRegion] = field(default_factory=Counter)
    hwpts: list[PagingHwpt] = field(default_factory=list)

    def overlaps(self, base: int, size: int) -> bool:
        """Tell whether anything is mapped in ``size`` bytes from ``base``."""
        return any(
            start < base + size and base < start + length
            for start, (length, _output) in self.areas.items()
        )


@dataclass(eq=False)
class PagingHwpt(Object):
    """A stage 2 table of one SMMU, filled from an IOAS.

    :param slots: addresses of the SW MSI slots that are mapped in it.
    """

    ioas: Ioas
    smmu: int
    table: PageTable
    nest_parent: bool
    slots: set[Iova] = field(default_factory=set)


@dataclass(eq=False)
class Viommu(Object):
    """A virtual SMMU, on the stage 2 of a physical one."""

    hwpt: PagingHwpt
    vdevices: dict[int, Vdevice] = field(default_factory=dict)


@dataclass(eq=False)
class Vdevice(Object):
    """A device as the guest's SMMU knows it, by virtual StreamID."""

    viommu: Viommu
    device: IommufdDevice
    virt_id: int


class SteConfig(StrEnum):
    """What a guest's stream table entry asks for: STE.Config as the nesting interface takes it."""

    TRANSLATE = "translate"
    BYPASS = "bypass"
    ABORT = "abort"


@dataclass(eq=False)
class NestedHwpt(Object):
    """A guest's stream table entry: a stage 1 on a vIOMMU's stage 2."""

    viommu: Viommu
    config: SteConfig
    stage1: Stage1Config | None


@dataclass(eq=False)
class _Group:
    """An IOMMU group within the file descriptor: what its attached devices share.

    :param required: slots its devices have used, by address; installed in what it is attached to.
    """

    hwpt: NestedHwpt | None = None
    attached: set[int] = field(default_factory=set)
    window: ReservedRegion | None = None
    required: dict[Iova, Pa] = field(default_factory=dict)


@dataclass(eq=False)
class IommufdDevice(Object):
    """A device that is bound to the file descriptor."""

    host: HostDevice
    group: _Group
    vdevice: Vdevice | None = None


class Iommufd:
    """One file descriptor of /dev/iommu."""

    def __init__(self, host: HostTopology) -> None:
        self.slots = SwMsiSlots()
        self._host = host
        self._objects: dict[int, Object] = {}
        self._groups: dict[int, _Group] = {}
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
        """VFIO_DEVICE_BIND_IOMMUFD: ``iommufd_device_bind``; return the device's id."""
        group = self._groups.setdefault(device.iommu_group, _Group())
        return self._add(IommufdDevice(self._next, device, group)).id

    def ioas_alloc(self) -> int:
        """IOMMU_IOAS_ALLOC; return the IOAS's id."""
        return self._add(Ioas(self._next)).id

    def ioas_map(self, ioas_id: int, iova: int, size: int, output: int) -> None:
        """IOMMU_IOAS_MAP with a fixed IOVA.

        ``iopt_check_iova``, then the tables are filled: ``iopt_area_fill_domains``.

        :raise BackendError: ENOENT for the id; EINVAL when it is not aligned to pages or touches
            a reserved region; EOVERFLOW past the end; EEXIST when something is mapped there.
        """
        ioas = self._get(ioas_id, Ioas)
        what = f"IOMMU_IOAS_MAP of {iova:#x}"
        if (iova | size | output) & (self.page_size - 1) or size <= 0:
            raise BackendError(
                errno.EINVAL, f"{what}: not aligned to the {self._host.granule} granule"
            )
        if iova + size > 1 << 64:
            raise BackendError(errno.EOVERFLOW, f"{what}: {size:#x} bytes end past 2^64")
        for region in ioas.reserved:
            if region.overlaps(iova, size):
                raise BackendError(
                    errno.EINVAL,
                    f"{what}: lies in the reserved region {region} of the attached devices; an "
                    "address outside of it would work",
                )
        if ioas.overlaps(iova, size):
            raise BackendError(errno.EEXIST, f"{what}: something is mapped there already")
        for number, hwpt in enumerate(ioas.hwpts):
            try:
                hwpt.table.map(iova, output, size)
            except BackendError:
                for done in ioas.hwpts[:number]:
                    done.table.unmap(iova)
                raise
        ioas.areas[iova] = (size, output)

    def ioas_unmap(self, ioas_id: int, iova: int) -> None:
        """IOMMU_IOAS_UNMAP of what one call mapped.

        :raise BackendError: ENOENT for the id, or where nothing starts: ``iopt_unmap_iova``.
        """
        ioas = self._get(ioas_id, Ioas)
        if iova not in ioas.areas:
            raise BackendError(errno.ENOENT, f"IOMMU_IOAS_UNMAP of {iova:#x}: nothing is mapped")
        del ioas.areas[iova]
        for hwpt in ioas.hwpts:
            hwpt.table.unmap(iova)

    def hwpt_alloc(self, device_id: int, ioas_id: int, *, nest_parent: bool = True) -> int:
        """IOMMU_HWPT_ALLOC of a stage 2: ``iommufd_hwpt_paging_alloc``; return its id.

        :raise BackendError: ENOENT for an id; EOPNOTSUPP when the SMMU cannot nest
            (``arm_smmu_domain_alloc_paging_flags``).
        """
        device = self._get(device_id, IommufdDevice)
        ioas = self._get(ioas_id, Ioas)
        smmu = self._smmu(device)
        if nest_parent and not self._host.smmu_by_id[smmu].nested:
            raise BackendError(errno.EOPNOTSUPP, f"SMMU {smmu}: does not implement two stages")
        table = PageTable(self._host.granule)
        for iova, (size, output) in ioas.areas.items():
            table.map(iova, output, size)
        hwpt = self._add(PagingHwpt(self._next, ioas, smmu, table, nest_parent))
        ioas.hwpts.append(hwpt)
        ioas.users += 1
        return hwpt.id

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
            raise BackendError(
                errno.EINVAL,
                f"{device.host.address}: is behind SMMU {smmu}, the S2 is SMMU {hwpt.smmu}'s: one "
                "S2 parent per physical SMMU",
            )
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
            raise BackendError(
                errno.EINVAL,
                f"{address}: is behind SMMU {device.host.smmu}, the S2 is SMMU "
                f"{viommu.hwpt.smmu}'s: one S2 parent per physical SMMU",
            )
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
        device.vdevice = viommu.vdevices[virt_id] = vdevice
        viommu.users += 1
        return vdevice.id

    def hwpt_alloc_nested(
        self, viommu_id: int, config: SteConfig, stage1: Stage1Config | None = None
    ) -> int:
        """IOMMU_HWPT_ALLOC on a vIOMMU: ``arm_vsmmu_alloc_domain_nested``; return its id.

        :raise BackendError: ENOENT for the id; EIO for a stream table entry that translates
            without a stage 1 (``arm_smmu_validate_vste``).
        """
        viommu = self._get(viommu_id, Viommu)
        if (config is SteConfig.TRANSLATE) != (stage1 is not None):
            raise BackendError(
                errno.EIO, f"vIOMMU {viommu_id}: the stream table entry is not valid"
            )
        viommu.users += 1
        return self._add(NestedHwpt(self._next, viommu, config, stage1)).id

    def attach(self, device_id: int, hwpt_id: int) -> NestedHwpt:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT: ``iommufd_hw_pagetable_attach``; return the HWPT.

        :raise BackendError: ENOENT for an id; EBUSY when the device is attached; EINVAL when its
            group is attached to another HWPT or the HWPT is another SMMU's
            (``arm_smmu_attach_dev_nested``); EADDRINUSE when a reserved region of the device is
            mapped (``iopt_table_enforce_dev_resv_regions``); ENOENT when the HWPT translates and
            the device has no vDEVICE (``arm_smmu_attach_prepare_vmaster``).
        """
        device = self._get(device_id, IommufdDevice)
        hwpt = self._get(hwpt_id, NestedHwpt)
        group, host, parent = device.group, device.host, hwpt.viommu.hwpt
        if device_id in group.attached:
            raise BackendError(errno.EBUSY, f"{host.address}: attached already")
        if group.hwpt not in {None, hwpt}:
            raise BackendError(
                errno.EINVAL,
                f"{host.address}: IOMMU group {host.iommu_group} is attached elsewhere",
            )
        reserved = [r for r in host.reserved if r.kind is not ReservedKind.DIRECT_RELAXABLE]
        for region in reserved:
            if parent.ioas.overlaps(region.base, region.size):
                raise BackendError(
                    errno.EADDRINUSE,
                    f"{host.address}: reserved region {region} is mapped already in the guest's "
                    "address space",
                )
        if not group.attached:
            for iova, page in group.required.items():
                self._install(parent, iova, page)
            if parent.smmu != host.smmu:
                raise BackendError(
                    errno.EINVAL, f"{host.address}: is not behind SMMU {parent.smmu}"
                )
            vdevice = device.vdevice
            owned = vdevice is not None and vdevice.viommu is hwpt.viommu
            if hwpt.config is SteConfig.TRANSLATE and not owned:
                raise BackendError(
                    errno.ENOENT,
                    f"{host.address}: has no vDEVICE on the vIOMMU; it must be allocated before a "
                    "stage 1 is attached",
                )
        group.hwpt = hwpt
        group.attached.add(device_id)
        group.window = host.sw_msi_window
        parent.ioas.reserved.update(reserved)
        hwpt.users += 1
        return hwpt

    def detach(self, device_id: int) -> None:
        """VFIO_DEVICE_DETACH_IOMMUFD_PT: ``iommufd_hw_pagetable_detach``."""
        device = self._get(device_id, IommufdDevice)
        group = device.group
        hwpt = group.hwpt
        if hwpt is None or device_id not in group.attached:
            return
        group.attached.discard(device_id)
        reserved = [r for r in device.host.reserved if r.kind is not ReservedKind.DIRECT_RELAXABLE]
        hwpt.viommu.hwpt.ioas.reserved -= Counter(reserved)
        hwpt.users -= 1
        if not group.attached:
            group.hwpt = None

    def destroy(self, number: int) -> None:
        """IOMMU_DESTROY.

        :raise BackendError: ENOENT for the id; EBUSY while something refers to the object:
            ``iommufd_object_remove``.
        """
        found = self._get(number, Object)
        if found.users:
            raise BackendError(errno.EBUSY, f"object {number}: {found.users} others refer to it")
        match found:
            case PagingHwpt():
                found.ioas.hwpts.remove(found)
                found.ioas.users -= 1
            case Viommu():
                found.hwpt.users -= 1
            case Vdevice():
                found.device.vdevice = None
                del found.viommu.vdevices[found.virt_id]
                found.viommu.users -= 1
            case NestedHwpt():
                found.viommu.users -= 1
        del self._objects[number]

    def sw_msi(self, device_id: int, doorbell: Pa) -> Iova:
        """Return the page address that ``iommufd_sw_msi`` gives an attached device.

        :raise BackendError: EOVERFLOW when all slots are given out; what iommu_map returns.
        """
        group = self._get(device_id, IommufdDevice).group
        page = doorbell.align_down(self.page_size)
        if group.hwpt is None or group.window is None:
            return Iova(page)
        iova = self.slots.get(group.window.base, page, self.page_size)
        self._install(group.hwpt.viommu.hwpt, iova, page)
        group.required[iova] = page
        return iova

    def _install(self, hwpt: PagingHwpt, iova: Iova, page: Pa) -> None:
        """``iommufd_sw_msi_install``: a raw iommu_map, once per stage 2."""
        if iova not in hwpt.slots:
            hwpt.table.map(iova, page, self.page_size)
            hwpt.slots.add(iova)

    @staticmethod
    def _smmu(device: IommufdDevice) -> int:
        if device.host.smmu is None:
            raise BackendError(errno.ENODEV, f"{device.host.address}: is behind no SMMU")
        return device.host.smmu

    def hwpt(self, hwpt_id: int) -> PagingHwpt:
        """Return a stage 2 by id, to look into.

        :raise BackendError: ENOENT when there is none.
        """
        return self._get(hwpt_id, PagingHwpt)
