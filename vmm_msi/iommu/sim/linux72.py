"""Linux 7.2: the simulated VMM's kernel, with iommufd."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu.sim.core import IommuCore
from vmm_msi.iommu.sim.iommufd import SimIommufd
from vmm_msi.iommu.sim.kernel import RAM_PA, Kernel, S2Domain
from vmm_msi.iommu.sim.objects import GuestSte, SteConfig
from vmm_msi.iommu.sim.smmu import Stage1Config, Stage2Config, StreamTableEntry
from vmm_msi.iommu.vmm import RamMapping, Vmm, VmmDevice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.iommu.backend import S2Handle
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.types import GuestDomain, HostDevice, HostTopology, Iova, Ipa, Pa, PciAddress


@dataclass(frozen=True, slots=True)
class _VfioDevice:
    """The simulated character device of a bound device."""

    fd: SimIommufd
    dev_id: int

    def attach(self, pt_id: int) -> None:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT."""
        self.fd.attach(self.dev_id, pt_id)

    def detach(self) -> None:
        """VFIO_DEVICE_DETACH_IOMMUFD_PT."""
        self.fd.detach(self.dev_id)


class IommufdKernel(Kernel):
    """The kernel with iommufd, and a VMM that binds all assigned devices at its start."""

    def __init__(self, host: HostTopology, guest: GuestDomain, profile: Profile) -> None:
        super().__init__(host, guest, profile)
        self._core = IommuCore(host)
        self.fd = SimIommufd(host, self._core)
        addresses = [device.host for device in guest.devices]
        self._vmm = Vmm(self.fd, [self._bind(host.device_by_address[a]) for a in addresses])

    def _bind(self, device: HostDevice) -> VmmDevice:
        dev_id = self.fd.bind(device)
        return VmmDevice(device, dev_id, _VfioDevice(self.fd, dev_id))

    def alloc_s2(self, smmu: int, *, msi_cookie: bool) -> S2Handle:  # noqa: ARG002
        """Allocate a stage 2; see :meth:`Vmm.alloc_s2`.

        :raise BackendError: EOPNOTSUPP when the SMMU lacks a stage.
        """
        objects = self._vmm.alloc_s2(smmu, self._ram())
        config = Stage2Config(vmid=objects.hwpt, table=self.fd.hwpt(objects.hwpt).table)
        self.domains[objects.handle] = S2Domain(objects.handle, smmu, config)
        return objects.handle

    def _ram(self) -> Iterator[RamMapping]:
        physical = RAM_PA
        for ram in self.guest.memory:
            yield RamMapping(ram.base, ram.size, physical)
            physical += ram.size

    def free_s2(self, handle: S2Handle) -> None:
        """Free a stage 2; see :meth:`Vmm.free_s2`.

        :raise BackendError: EBUSY while a device is attached.
        """
        self._vmm.free_s2(handle)
        self.forget(handle)

    def attach(self, device: HostDevice, handle: S2Handle, name: str, s1: Stage1Config) -> None:
        """Attach a device; see :meth:`Vmm.attach`.

        :raise BackendError: see :class:`SimIommufd`; nothing is left allocated for the device.
        """
        domain = self.domains[handle]
        self._vmm.attach(device.address, handle, name, GuestSte(SteConfig.TRANSLATE, s1))
        self.join(device, domain, name)
        self.smmus[domain.smmu].install(device.stream_id, StreamTableEntry(s1, domain.config))

    def detach(self, device: HostDevice) -> None:
        """Detach a device; see :meth:`Vmm.detach`."""
        self._vmm.detach(device.address)
        self.leave(device)

    def map_doorbell(self, handle: S2Handle, gdb: Ipa, page: Pa) -> None:
        """Map a page in place of the doorbell; see :meth:`SimIommufd.ioas_map`."""
        self._vmm.map(handle, gdb, self.page_size, page)

    def unmap_doorbell(self, handle: S2Handle, gdb: Ipa) -> None:
        """Unmap it, and invalidate as the kernel does."""
        self._vmm.unmap(handle, gdb, self.page_size)
        self.invalidate(handle)

    def prepare_msi(self, device: HostDevice, doorbell: Pa) -> Iova:
        """``iommu_dma_prepare_msi`` on a domain with IOMMU_COOKIE_IOMMUFD: ``iommufd_sw_msi``."""
        self.domain_of(device.address)
        return self._core.prepare_msi(device, doorbell)

    def bind_guest_msi(self, device: PciAddress, giova: Iova, gdb: Ipa, size: int) -> None:
        """Refuse: this kernel has no such call.

        :raise BackendError: EOPNOTSUPP, always.
        """
        raise self._no_bindings(device, f"bind {giova} -> {gdb}, {size:#x} bytes")

    def unbind_guest_msi(self, device: PciAddress, giova: Iova) -> None:
        """Refuse: this kernel has no such call.

        :raise BackendError: EOPNOTSUPP, always.
        """
        raise self._no_bindings(device, f"unbind {giova}")

    def _no_bindings(self, device: PciAddress, call: str) -> BackendError:
        self.domain_of(device)
        name = self.profile.name
        return BackendError(errno.EOPNOTSUPP, f"{device}: {call}: {name} has no guest bindings")

    @property
    def slots(self) -> int:
        """Slots of the software MSI window that are in use."""
        return len(self.fd.slots)

    def close(self) -> None:
        """Close the file descriptor, which frees the slots."""
        self.fd.slots.clear()
