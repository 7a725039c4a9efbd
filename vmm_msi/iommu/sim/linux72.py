"""Linux 7.2: a VMM's calls on an iommufd file descriptor, in the order that works."""

from __future__ import annotations

import errno
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from vmm_msi.errors import BackendError
from vmm_msi.iommu.backend import S2Handle
from vmm_msi.iommu.sim.core import IommuCore
from vmm_msi.iommu.sim.iommufd import Iommufd
from vmm_msi.iommu.sim.kernel import RAM_PA, Kernel, S2Domain
from vmm_msi.iommu.sim.objects import SteConfig
from vmm_msi.iommu.sim.smmu import Stage1Config, Stage2Config, StreamTableEntry

if TYPE_CHECKING:
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.types import GuestDomain, HostDevice, HostTopology, Iova, Ipa, Pa, PciAddress

KeyT = TypeVar("KeyT")


@dataclass
class _S2Objects:
    """The objects behind one stage 2.

    :param nested: HWPT by the name of the stage 1; ``users`` counts the devices of each.
    """

    ioas: int
    hwpt: int
    viommu: int | None = None
    nested: dict[str, int] = field(default_factory=dict)
    users: Counter[str] = field(default_factory=Counter)
    vdevices: dict[PciAddress, int] = field(default_factory=dict)


class IommufdKernel(Kernel):
    """The kernel with iommufd, and a VMM that binds all assigned devices at its start."""

    def __init__(self, host: HostTopology, guest: GuestDomain, profile: Profile) -> None:
        super().__init__(host, guest, profile)
        self._core = IommuCore(host)
        self.fd = Iommufd(host, self._core)
        self._ids = {
            device.host: self.fd.bind(host.device_by_address[device.host])
            for device in guest.devices
        }
        #: Assigned devices by IOMMU group.
        self._mates: dict[int, list[HostDevice]] = {}
        for address in self._ids:
            device = host.device_by_address[address]
            self._mates.setdefault(device.iommu_group, []).append(device)
        self._objects: dict[S2Handle, _S2Objects] = {}

    def alloc_s2(self, smmu: int, *, msi_cookie: bool) -> S2Handle:  # noqa: ARG002
        """Allocate an IOAS with the guest's RAM and a nesting parent on it.

        :raise BackendError: EOPNOTSUPP when the SMMU lacks a stage.
        """
        devices = self.host.device_by_address
        behind = next((i for a, i in self._ids.items() if devices[a].smmu == smmu), None)
        if behind is None:
            raise BackendError(errno.ENOENT, f"SMMU {smmu}: no device of the guest is behind it")
        ioas = self.fd.ioas_alloc()
        try:
            physical = RAM_PA
            for ram in self.guest.memory:
                self.fd.ioas_map(ioas, ram.base, ram.size, physical)
                physical += ram.size
            hwpt = self.fd.hwpt_alloc(behind, ioas)
        except BackendError:
            self.fd.destroy(ioas)
            raise
        handle = S2Handle(hwpt)
        config = Stage2Config(vmid=hwpt, table=self.fd.hwpt(hwpt).table)
        self.domains[handle] = S2Domain(handle, smmu, config)
        self._objects[handle] = _S2Objects(ioas, hwpt)
        return handle

    def free_s2(self, handle: S2Handle) -> None:
        """Destroy the vIOMMU, the nesting parent and the IOAS.

        :raise BackendError: EBUSY while a device is attached.
        """
        objects = self._objects[handle]
        self._destroy_viommu(objects)
        self.fd.destroy(objects.hwpt)
        self.fd.destroy(objects.ioas)
        del self._objects[handle]
        self.forget(handle)

    def attach(self, device: HostDevice, handle: S2Handle, name: str, s1: Stage1Config) -> None:
        """Allocate what is missing of vIOMMU, vDEVICE and nested HWPT, and attach.

        :raise BackendError: see :class:`Iommufd`; nothing is left allocated for the device.
        """
        objects, domain = self._objects[handle], self.domains[handle]
        number = self._ids[device.address]
        with ExitStack() as undo:
            if objects.viommu is None:
                objects.viommu = self.fd.viommu_alloc(number, objects.hwpt)
                undo.callback(self._destroy_viommu, objects)
            for mate in self._missing(device):
                vdevice = self.fd.vdevice_alloc(
                    objects.viommu, self._ids[mate.address], mate.stream_id
                )
                objects.vdevices[mate.address] = vdevice
                undo.callback(self._destroy, objects.vdevices, mate.address)
            if name not in objects.nested:
                objects.nested[name] = self.fd.hwpt_alloc_nested(
                    number, objects.viommu, SteConfig.TRANSLATE, s1
                )
                undo.callback(self._destroy, objects.nested, name)
            self.fd.attach(number, objects.nested[name])
            undo.pop_all()
        objects.users[name] += 1
        self.join(device, domain, name)
        self.smmus[domain.smmu].install(device.stream_id, StreamTableEntry(s1, domain.config))

    def _missing(self, device: HostDevice) -> list[HostDevice]:
        """Return the devices of the group that need a vDEVICE here and have none.

        All of the group need one before the first is attached. Where the group is attached
        elsewhere they have them there, and attaching is what is refused.
        """
        return [
            mate
            for mate in self._mates[device.iommu_group]
            if not any(mate.address in each.vdevices for each in self._objects.values())
        ]

    def _destroy(self, numbers: dict[KeyT, int], key: KeyT) -> None:
        self.fd.destroy(numbers.pop(key))

    def _destroy_viommu(self, objects: _S2Objects) -> None:
        if objects.viommu is not None:
            self.fd.destroy(objects.viommu)
            objects.viommu = None

    def detach(self, device: HostDevice) -> None:
        """Detach, and destroy vDEVICEs and a nested HWPT that nobody uses."""
        domain = self.domain_of(device.address)
        objects = self._objects[domain.handle]
        name = domain.devices[device.address]
        self.fd.detach(self._ids[device.address])
        self.leave(device)
        self._destroy_vdevices(device, domain, objects)
        objects.users[name] -= 1
        if not objects.users[name]:
            self._destroy(objects.nested, name)

    def _destroy_vdevices(self, device: HostDevice, domain: S2Domain, objects: _S2Objects) -> None:
        """Destroy the vDEVICEs of a group, once none of its devices is attached."""
        mates = [mate.address for mate in self._mates[device.iommu_group]]
        if not any(mate in domain.devices for mate in mates):
            for mate in mates:
                if mate in objects.vdevices:
                    self._destroy(objects.vdevices, mate)

    def map_doorbell(self, handle: S2Handle, gdb: Ipa, page: Pa) -> None:
        """IOMMU_IOAS_MAP of a page that stands for the doorbell; see :meth:`Iommufd.ioas_map`."""
        self.fd.ioas_map(self._objects[handle].ioas, gdb, self.page_size, page)

    def unmap_doorbell(self, handle: S2Handle, gdb: Ipa) -> None:
        """IOMMU_IOAS_UNMAP, and the invalidation that follows."""
        self.fd.ioas_unmap(self._objects[handle].ioas, gdb, self.page_size)
        self.invalidate(handle)

    def prepare_msi(self, device: HostDevice, doorbell: Pa) -> Iova:
        """``iommu_dma_prepare_msi`` on a domain with IOMMU_COOKIE_IOMMUFD: ``iommufd_sw_msi``."""
        self.domain_of(device.address)
        return self._core.prepare_msi(device, doorbell)

    def bind_guest_msi(self, device: PciAddress, giova: Iova, gdb: Ipa, size: int) -> None:
        """There is no such call.

        :raise BackendError: EOPNOTSUPP, always.
        """
        raise self._no_bindings(device, f"bind {giova} -> {gdb}, {size:#x} bytes")

    def unbind_guest_msi(self, device: PciAddress, giova: Iova) -> None:
        """There is no such call.

        :raise BackendError: EOPNOTSUPP, always.
        """
        raise self._no_bindings(device, f"unbind {giova}")

    def _no_bindings(self, device: PciAddress, what: str) -> BackendError:
        self.domain_of(device)
        name = self.profile.name
        return BackendError(errno.EOPNOTSUPP, f"{device}: {what}: {name} has no guest bindings")

    @property
    def slots(self) -> int:
        """Slots of the software MSI window that are given out."""
        return len(self.fd.slots)

    def close(self) -> None:
        """Close the file descriptor: the slots go with it."""
        self.fd.slots.clear()
