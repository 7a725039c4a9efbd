"""What a VMM does on /dev/iommu: one procedure, for the simulator and for a real kernel.

A stage 2 is an IOAS with guest RAM and a nest parent on it. The first device that is attached to
a stage 2 gets it a vIOMMU, every device of its IOMMU group gets a vDEVICE, and the devices of a
stage 1 share a nested HWPT. A refused call leaves none of these objects behind.
"""

from __future__ import annotations

import errno
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from vmm_msi.errors import BackendError
from vmm_msi.iommu import rules
from vmm_msi.iommu.backend import S2Handle
from vmm_msi.iommu.guest_msi import MsiBinding, MsiOp, MsiRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.iommu.guest_msi import BoundMsi
    from vmm_msi.types import HostDevice, PciAddress

#: A guest's stream table entry, as a file descriptor takes it.
SteT = TypeVar("SteT")
SteT_contra = TypeVar("SteT_contra", contravariant=True)


class Iommufd(Protocol[SteT_contra]):
    """The calls of one file descriptor of /dev/iommu: ``include/uapi/linux/iommufd.h``.

    Each method is one ioctl and raises :class:`~vmm_msi.errors.BackendError` with the kernel's
    errno when the kernel refuses it.
    """

    def ioas_alloc(self) -> int:
        """IOMMU_IOAS_ALLOC; return the IOAS's id."""
        ...

    def ioas_map(self, ioas_id: int, iova: int, size: int, address: int) -> None:
        """IOMMU_IOAS_MAP of memory at a fixed IOVA, for reading and writing.

        :param address: of the memory: virtual on a real kernel, physical in the simulator.
        """
        ...

    def ioas_unmap(self, ioas_id: int, iova: int, size: int) -> int:
        """IOMMU_IOAS_UNMAP; return the number of bytes unmapped."""
        ...

    def hwpt_alloc(self, dev_id: int, pt_id: int, *, nest_parent: bool = True) -> int:
        """IOMMU_HWPT_ALLOC on an IOAS, without data; return the HWPT's id."""
        ...

    def viommu_alloc(self, dev_id: int, hwpt_id: int) -> int:
        """IOMMU_VIOMMU_ALLOC of type ARM_SMMUV3; return the vIOMMU's id."""
        ...

    def vdevice_alloc(self, viommu_id: int, dev_id: int, virt_id: int) -> int:
        """IOMMU_VDEVICE_ALLOC with a virtual StreamID; return the vDEVICE's id."""
        ...

    def hwpt_alloc_nested(self, dev_id: int, viommu_id: int, ste: SteT_contra) -> int:
        """IOMMU_HWPT_ALLOC on a vIOMMU with a guest's stream table entry; return the HWPT's id."""
        ...

    def destroy(self, number: int) -> None:
        """IOMMU_DESTROY of the object with the id ``number``."""
        ...

    def set_msi_binding(self, hwpt_id: int, value: int) -> None:
        """IOMMU_OPTION of IOMMU_OPTION_MSI_BINDING, for a nest parent."""
        ...

    def msi_binding(self, hwpt_id: int) -> int:
        """Return the value of IOMMU_OPTION_MSI_BINDING of a nest parent."""
        ...

    def vdevice_msi(self, vdevice_id: int, request: MsiRequest) -> BoundMsi | None:
        """IOMMU_VDEVICE_MSI; return the binding that a QUERY asks for."""
        ...


class VfioAttach(Protocol):
    """The calls of a device's VFIO character device that attach it: ``linux/vfio.h``."""

    def attach(self, pt_id: int) -> None:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT to an IOAS or HWPT."""
        ...

    def detach(self) -> None:
        """VFIO_DEVICE_DETACH_IOMMUFD_PT."""
        ...


class VmmDevice(NamedTuple):
    """An assigned device, bound to the file descriptor.

    :param dev_id: its id in the file descriptor.
    """

    host: HostDevice
    dev_id: int
    vfio: VfioAttach


class RamMapping(NamedTuple):
    """A piece of guest RAM.

    :param address: of the memory, as :meth:`Iommufd.ioas_map` takes it.
    """

    ipa: int
    size: int
    address: int


@dataclass(eq=False)
class S2Objects:
    """The objects of one stage 2, by id.

    :param smmu: id of its SMMU in the host description.
    :param nested: the nested HWPT of each stage 1, by the stage 1's name.
    :param devices: the attached devices, each with the name of its stage 1.
    :param users: number of devices attached with each stage 1.
    """

    smmu: int
    ioas: int
    hwpt: int
    viommu: int | None = None
    nested: dict[str, int] = field(default_factory=dict)
    devices: dict[PciAddress, str] = field(default_factory=dict)
    users: Counter[str] = field(default_factory=Counter)

    @property
    def handle(self) -> S2Handle:
        """The backend's handle of the stage 2."""
        return S2Handle(self.hwpt)


class Vmm(Generic[SteT]):
    """The objects of one guest on one file descriptor of /dev/iommu.

    :param devices: the guest's devices, bound to ``fd``.
    """

    def __init__(self, fd: Iommufd[SteT], devices: Iterable[VmmDevice]) -> None:
        self._fd = fd
        self._devices = {device.host.address: device for device in devices}
        #: A device behind each SMMU, and the devices of each IOMMU group.
        self._behind: dict[int | None, VmmDevice] = {}
        self._groups: dict[int, list[VmmDevice]] = {}
        for device in self._devices.values():
            self._index(device)
        #: What exists now.
        self.stage2: dict[S2Handle, S2Objects] = {}
        self._attached: dict[PciAddress, S2Objects] = {}
        self._vdevices: dict[PciAddress, int] = {}

    def _index(self, device: VmmDevice) -> None:
        self._behind.setdefault(device.host.smmu, device)
        self._groups.setdefault(device.host.iommu_group, []).append(device)

    @property
    def bound(self) -> tuple[VmmDevice, ...]:
        """The devices that are bound to the file descriptor."""
        return tuple(self._devices.values())

    def add(self, device: VmmDevice) -> None:
        """Add a device that was bound to the file descriptor."""
        self._devices[device.host.address] = device
        self._index(device)

    def remove(self, device: PciAddress) -> VmmDevice:
        """Remove a detached device, which the caller unbinds."""
        removed = self._devices.pop(device)
        self._behind.clear()
        self._groups.clear()
        for other in self._devices.values():
            self._index(other)
        return removed

    def dev_id(self, device: PciAddress) -> int:
        """Return the id of a bound device in the file descriptor."""
        return self._devices[device].dev_id

    def alloc_s2(
        self, smmu: int, ram: Iterable[RamMapping], binding: MsiBinding = MsiBinding.DIRECT
    ) -> S2Objects:
        """Allocate an IOAS with guest RAM and a nest parent on it.

        :param binding: the allocator of the nest parent; DIRECT is the kernel's default.
        :raise BackendError: ENOENT when no device of the guest is behind the SMMU; the kernel's
            refusal.
        """
        device = self._behind.get(smmu)
        if device is None:
            raise rules.S2_DEVICE.refusal(
                errno.ENOENT, f"SMMU {smmu}: no device of the guest is behind it"
            )
        ioas = self._fd.ioas_alloc()
        try:
            for mapping in ram:
                self._fd.ioas_map(ioas, *mapping)
            s2 = S2Objects(smmu, ioas, self._fd.hwpt_alloc(device.dev_id, ioas))
        except BackendError:
            self._fd.destroy(ioas)
            raise
        if binding is not MsiBinding.DIRECT:
            try:
                self._fd.set_msi_binding(s2.hwpt, binding)
            except BackendError:
                self._fd.destroy(s2.hwpt)
                self._fd.destroy(ioas)
                raise
        self.stage2[s2.handle] = s2
        return s2

    def s2(self, handle: S2Handle) -> S2Objects:
        """Return a stage 2.

        :raise BackendError: ENOENT when there is no such stage 2.
        """
        s2 = self.stage2.get(handle)
        if s2 is None:
            raise rules.S2_EXISTS.refusal(errno.ENOENT, f"S2 {handle}: does not exist")
        return s2

    def free_s2(self, handle: S2Handle) -> None:
        """Destroy a stage 2's vIOMMU, nest parent and IOAS, with everything mapped in it.

        :raise BackendError: EBUSY while a device is attached.
        """
        s2 = self.s2(handle)
        if s2.devices:
            raise rules.S2_UNUSED.refusal(
                errno.EBUSY, f"S2 {handle}: {len(s2.devices)} devices attached"
            )
        self._destroy_viommu(s2)
        self._fd.destroy(s2.hwpt)
        self._fd.destroy(s2.ioas)
        del self.stage2[handle]

    def is_attached(self, device: PciAddress) -> bool:
        """Return whether a device is attached."""
        return device in self._attached

    def s2_of(self, device: PciAddress) -> S2Objects:
        """Return the stage 2 that a device is attached to.

        :raise BackendError: EINVAL for a device that is not attached.
        """
        s2 = self._attached.get(device)
        if s2 is None:
            raise rules.ATTACHED.refusal(errno.EINVAL, f"{device}: not attached")
        return s2

    def map(self, handle: S2Handle, ipa: int, size: int, address: int) -> None:
        """Map memory in a stage 2; see :meth:`Iommufd.ioas_map`."""
        self._fd.ioas_map(self.s2(handle).ioas, ipa, size, address)

    def unmap(self, handle: S2Handle, ipa: int, size: int) -> None:
        """Unmap memory from a stage 2."""
        self._fd.ioas_unmap(self.s2(handle).ioas, ipa, size)

    def attach(self, address: PciAddress, handle: S2Handle, stage1: str, ste: SteT) -> None:
        """Allocate the missing ones of vIOMMU, vDEVICEs and nested HWPT, and attach a device.

        The kernel attaches the devices of an IOMMU group together, and each needs a vDEVICE first
        (``arm_smmu_attach_prepare_vmaster``).

        :param stage1: name of the stage 1 that ``ste`` leads to.
        :raise BackendError: EBUSY for an attached device; the kernel's refusal. Nothing is left
            allocated for the device.
        """
        device, s2 = self._devices[address], self.s2(handle)
        with ExitStack() as undo:
            if s2.viommu is None:
                s2.viommu = self._fd.viommu_alloc(device.dev_id, s2.hwpt)
                undo.callback(self._destroy_viommu, s2)
            for mate in self._groups[device.host.iommu_group]:
                if mate.host.address not in self._vdevices:
                    self._alloc_vdevice(mate, s2.viommu)
                    undo.callback(self._destroy_vdevice, mate)
            if stage1 not in s2.nested:
                s2.nested[stage1] = self._fd.hwpt_alloc_nested(device.dev_id, s2.viommu, ste)
                undo.callback(self._destroy_nested, s2, stage1)
            if address in self._attached:
                # VFIO would move it (vfio_iommufd_physical_attach_ioas).
                raise rules.NOT_ATTACHED.refusal(errno.EBUSY, f"{address}: attached already")
            device.vfio.attach(s2.nested[stage1])
            undo.pop_all()
        self._attached[address] = s2
        s2.devices[address] = stage1
        s2.users[stage1] += 1

    def bind_msi(self, address: PciAddress, giova: int, gdb: int, size: int) -> None:
        """Bind a doorbell for the vDEVICE of an attached device.

        :param size: of the guest's stage 1 page in bytes.
        :raise BackendError: EINVAL for a device that is not attached; the kernel's refusal.
        """
        shift = size.bit_length() - 1
        self._vdevice_msi(address, MsiRequest(MsiOp.BIND, page_shift=shift, iova=giova, gpa=gdb))

    def unbind_msi(self, address: PciAddress, giova: int) -> None:
        """Withdraw a binding of an attached device; see :meth:`bind_msi`."""
        self._vdevice_msi(address, MsiRequest(MsiOp.UNBIND, iova=giova))

    def prepare_msi(self, address: PciAddress) -> None:
        """Make the MSIs of an attached device take their address again; see :meth:`bind_msi`."""
        self._vdevice_msi(address, MsiRequest(MsiOp.PREPARE))

    def msi_bindings(self, address: PciAddress) -> list[BoundMsi]:
        """Return the bindings of an attached device's vDEVICE.

        :raise BackendError: see :meth:`bind_msi`.
        """
        bindings: list[BoundMsi] = []
        while True:
            request = MsiRequest(MsiOp.QUERY, index=len(bindings))
            try:
                binding = self._vdevice_msi(address, request)
            except BackendError as error:
                if error.errno != errno.ENOENT:
                    raise
                return bindings
            if binding is None:
                return bindings
            bindings.append(binding)

    def has_vdevice(self, device: HostDevice) -> bool:
        """Return whether a device has a vDEVICE."""
        return device.address in self._vdevices

    def _vdevice_msi(self, address: PciAddress, request: MsiRequest) -> BoundMsi | None:
        self.s2_of(address)
        return self._fd.vdevice_msi(self._vdevices[address], request)

    def detach(self, address: PciAddress) -> None:
        """Detach a device; destroy its group's vDEVICEs and its nested HWPT with the last user.

        :raise BackendError: EINVAL for a device that is not attached; the kernel's refusal.
        """
        device, s2 = self._devices[address], self.s2_of(address)
        device.vfio.detach()
        del self._attached[address]
        stage1 = s2.devices.pop(address)
        mates = self._groups[device.host.iommu_group]
        if not any(mate.host.address in self._attached for mate in mates):
            for mate in mates:
                self._destroy_vdevice(mate)
        s2.users[stage1] -= 1
        if not s2.users[stage1]:
            self._destroy_nested(s2, stage1)

    def _alloc_vdevice(self, device: VmmDevice, viommu: int) -> None:
        vdevice = self._fd.vdevice_alloc(viommu, device.dev_id, device.host.stream_id)
        self._vdevices[device.host.address] = vdevice

    def _destroy_vdevice(self, device: VmmDevice) -> None:
        self._fd.destroy(self._vdevices.pop(device.host.address))

    def _destroy_nested(self, s2: S2Objects, stage1: str) -> None:
        self._fd.destroy(s2.nested.pop(stage1))

    def _destroy_viommu(self, s2: S2Objects) -> None:
        if s2.viommu is not None:
            self._fd.destroy(s2.viommu)
            s2.viommu = None
