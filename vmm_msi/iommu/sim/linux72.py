"""Linux 7.2: the simulated VMM's kernel, with iommufd, and with what could be added to it."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import BackendError
from vmm_msi.iommu import rules
from vmm_msi.iommu.backend import Capability
from vmm_msi.iommu.guest_msi import BINDING_OF, MsiBinding
from vmm_msi.iommu.sim.binding_iommufd import BindingIommufd
from vmm_msi.iommu.sim.core import IommuCore, not_attached
from vmm_msi.iommu.sim.iommufd import SimIommufd
from vmm_msi.iommu.sim.kernel import RAM_PA, Kernel, S2Domain
from vmm_msi.iommu.sim.objects import GuestSte, Msis, SteConfig
from vmm_msi.iommu.sim.proposals import ProposedIommufd
from vmm_msi.iommu.sim.smmu import Stage1Config, Stage2Config, StreamTableEntry
from vmm_msi.iommu.vmm import RamMapping, Vmm, VmmDevice
from vmm_msi.types import Iova, Stage1Mode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.errors import Rule
    from vmm_msi.iommu.backend import MsiAllocator, S2Handle
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.iommu.sim.objects import PagingHwpt
    from vmm_msi.types import (
        GuestDomain,
        HostDevice,
        HostTopology,
        Ipa,
        Pa,
        PciAddress,
        ReservedRegion,
    )


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


#: Object ids of one file descriptor, so that those of several differ.
_IDS_PER_FILE = 1 << 20


class _File(NamedTuple):
    """An open /dev/iommu, and what the VMM has there."""

    fd: SimIommufd
    vmm: Vmm[GuestSte]


class IommufdKernel(Kernel):
    """The kernel with iommufd, and a VMM that binds all assigned devices at its start.

    A real VMM exits when a device is not bound; here it is refused at its first call.
    """

    def __init__(self, host: HostTopology, guest: GuestDomain, profile: Profile) -> None:
        super().__init__(host, guest, profile)
        self._core = IommuCore(host)
        self._files: list[_File] = []
        #: The file descriptor that the guest's devices share, and that of each stage 2 and device.
        self._shared = self._open_file()
        self._file_of_s2: dict[S2Handle, _File] = {}
        self._file_of: dict[PciAddress, _File] = {}
        self._unbound: dict[PciAddress, BackendError] = {}
        #: The first device behind each SMMU, and the SMMUs with a bound device.
        self._first_behind: dict[int | None, PciAddress] = {}
        self._bound_smmus: set[int | None] = set()
        for guest_device in self.guest.devices:
            device = self.host.device_by_address[guest_device.host]
            self._first_behind.setdefault(device.smmu, device.address)
            if self._bind(device, self._shared):
                self._bound_smmus.add(device.smmu)

    def _open_file(self) -> _File:
        """Open /dev/iommu; object ids differ between file descriptors, as VMIDs and handles do."""
        first = 1 + len(self._files) * _IDS_PER_FILE
        fd: SimIommufd
        if Capability.SW_MSI_MOVE in self.profile.capabilities:
            window = self.profile.file_window
            fd = ProposedIommufd(self.host, self._core, first, file_window=window)
        elif self.profile.has_bindings:
            fd = BindingIommufd(self.host, self._core, first, on_unmap=self._invalidate_table)
        else:
            fd = SimIommufd(self.host, self._core, first)
        self._files.append(_File(fd, Vmm(fd, [])))
        return self._files[-1]

    def _invalidate_table(self, hwpt: PagingHwpt) -> None:
        self.smmus[hwpt.smmu].invalidate_vmid(hwpt.id)

    def _bind(self, device: HostDevice, file: _File) -> bool:
        """Bind a device; return whether it was not refused."""
        self._file_of[device.address] = file
        try:
            dev_id = file.fd.bind(device)
        except BackendError as error:
            self._unbound[device.address] = error
            return False
        self._unbound.pop(device.address, None)
        file.vmm.add(VmmDevice(device, dev_id, _VfioDevice(file.fd, dev_id)))
        return True

    def _move_group(self, device: HostDevice, file: _File) -> None:
        """Bind a device and its IOMMU group to another file descriptor; one owns the group.

        :raise BackendError: EPERM when a device of the group is attached.
        """
        mates = [
            mate for mate in self._mates(device) if mate.address in self.guest.device_by_address
        ]
        if all(self._file_of[mate.address] is file for mate in mates):
            return
        attached = next((mate.address for mate in mates if self.is_attached(mate.address)), None)
        if attached is not None:
            raise rules.ONE_OWNER.refusal(
                errno.EPERM,
                f"{device.address}: another file descriptor owns its IOMMU group, since {attached} "
                "is attached there; bind all devices of a group to one",
            )
        for mate in mates:
            if mate.address not in self._unbound:
                old = self._file_of[mate.address]
                old.fd.unbind(old.vmm.remove(mate.address).dev_id)
        for mate in mates:
            if self._bind(mate, file) and mate.address in self.moved_windows:
                self._move_window(mate.address, self.moved_windows[mate.address])

    def _check_bound(self, device: PciAddress) -> None:
        """Check that VFIO_DEVICE_BIND_IOMMUFD did not refuse a device."""
        if device in self._unbound:
            raise self._unbound[device]

    def alloc_s2(
        self, smmu: int, allocator: MsiAllocator, own_file: HostDevice | None = None
    ) -> S2Handle:
        """Allocate a stage 2; see :meth:`Vmm.alloc_s2`.

        :raise BackendError: EOPNOTSUPP when the SMMU lacks a stage, and for an allocator that this
            kernel does not have; the refusal to bind, if no device behind the SMMU is bound.
        """
        if own_file is None:
            return self._alloc_s2(smmu, allocator, self._shared)
        file = self._open_file()
        self._move_group(own_file, file)
        try:
            self._check_bound(own_file.address)
            return self._alloc_s2(smmu, allocator, file)
        except BackendError:
            self._move_group(own_file, self._shared)
            raise

    def _alloc_s2(self, smmu: int, allocator: MsiAllocator, file: _File) -> S2Handle:
        binding = BINDING_OF.get(allocator, MsiBinding.DIRECT)
        if binding is not MsiBinding.DIRECT and not self.profile.has_bindings:
            raise rules.UNKNOWN_OPTION.refusal(
                errno.EOPNOTSUPP, f"{self.profile.name} has no guest bindings as in {allocator}"
            )
        if smmu in self._first_behind and smmu not in self._bound_smmus:
            self._check_bound(self._first_behind[smmu])
        objects = file.vmm.alloc_s2(smmu, self._ram(), binding)
        hwpt = file.fd.hwpt(objects.hwpt)
        domain = S2Domain(objects.handle, smmu, Stage2Config(vmid=objects.hwpt, table=hwpt.table))
        domain.bindings = hwpt.bindings
        self.domains[objects.handle] = domain
        self._file_of_s2[objects.handle] = file
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
        file = self._file_of_s2.get(handle, self._shared)
        file.vmm.free_s2(handle)
        del self._file_of_s2[handle]
        self.forget(handle)
        if file is not self._shared:
            for device in file.vmm.bound:
                self._move_group(device.host, self._shared)
            file.fd.slots.clear()

    def attach(self, device: HostDevice, handle: S2Handle, name: str, s1: Stage1Config) -> S2Handle:
        """Attach a device; see :meth:`Vmm.attach`.

        :raise BackendError: see :class:`SimIommufd`; nothing is left allocated for the device.
        """
        file = self._file_of_s2[handle]
        self._move_group(device, file)
        self._check_bound(device.address)
        domain = self.domains[handle]
        if isinstance(file.fd, ProposedIommufd) and self.profile.file_window:
            # It counts when the device is attached, and is that of all devices until then.
            file.fd.set_file_window(self.moved_windows.get(device.address))
        # Of S1DSS nothing but the SMMU knows.
        bypass = s1.mode is Stage1Mode.BYPASS
        ste = GuestSte(SteConfig.BYPASS) if bypass else GuestSte(SteConfig.TRANSLATE, s1)
        file.vmm.attach(device.address, handle, name, ste)
        self.join(device, domain, name)
        for mate in self._mates(device):
            self.smmus[domain.smmu].install(mate.stream_id, StreamTableEntry(s1, domain.config))
        return handle

    def _mates(self, device: HostDevice) -> list[HostDevice]:
        """Return the devices of an IOMMU group, which are attached and detached together."""
        return [master.host for master in self._core.group(device).masters]

    def detach(self, device: HostDevice) -> None:
        """Detach a device; see :meth:`Vmm.detach`. The last one of its group blocks the group."""
        self._file_of[device.address].vmm.detach(device.address)
        mates = self._mates(device)
        others = any(self.is_attached(mate.address) for mate in mates if mate is not device)
        self.leave(device, () if others else mates)

    def map_doorbell(self, handle: S2Handle, gdb: Ipa, page: Pa) -> None:
        """Map a page in place of the doorbell; see :meth:`SimIommufd.ioas_map`."""
        self._file_of_s2[handle].vmm.map(handle, gdb, self.page_size, page)

    def unmap_doorbell(self, handle: S2Handle, gdb: Ipa) -> None:
        """Unmap it, and invalidate as the kernel does."""
        self._file_of_s2[handle].vmm.unmap(handle, gdb, self.page_size)
        self.invalidate(handle)

    def translation_of(self, device: HostDevice) -> tuple[S2Domain, str]:
        """Return what translates a device's MSIs: the IOMMU group has one HWPT.

        :raise BackendError: ENOSPC, inside EOPNOTSUPP, when no device of the group is attached
            (``iommu_dma_prepare_msi`` of a blocked group); the refusal to bind.
        """
        self._check_bound(device.address)
        for mate in (device, *self._mates(device)):
            if self.is_attached(mate.address):
                return super().translation_of(mate)
        raise _no_interrupt(not_attached(device.address))

    def move_sw_msi_window(self, device: PciAddress, window: ReservedRegion | None) -> None:
        """Move a device's window, or the file descriptor's for the device's attach.

        :raise BackendError: EOPNOTSUPP without the option; see
            :class:`~vmm_msi.iommu.sim.proposals.ProposedIommufd`.
        """
        self._check_bound(device)
        self._move_window(device, window)
        if window is None:
            self.moved_windows.pop(device, None)
        else:
            self.moved_windows[device] = window

    def _move_window(self, device: PciAddress, window: ReservedRegion | None) -> None:
        file = self._file_of[device]
        if not isinstance(file.fd, ProposedIommufd):
            super().move_sw_msi_window(device, window)
        elif not self.profile.file_window:
            file.fd.move_window(file.vmm.dev_id(device), window)

    def preset_msi(self, device: PciAddress, giova: Iova | None) -> None:
        """Preset the MSI address of a device.

        :raise BackendError: EINVAL without the call.
        """
        self._check_bound(device)
        file = self._file_of[device]
        has_call = Capability.MSI_PRESET in self.profile.capabilities
        if has_call and isinstance(file.fd, ProposedIommufd):
            file.fd.set_msi_iova(file.vmm.dev_id(device), giova)
        else:
            super().preset_msi(device, giova)
        if giova is None:
            self.presets.pop(device, None)
        else:
            self.presets[device] = giova

    def prepare_msi(self, device: HostDevice, doorbell: Pa) -> Iova:
        """``iommu_dma_prepare_msi`` on a domain with IOMMU_COOKIE_IOMMUFD: ``iommufd_sw_msi``.

        :raise BackendError: ENOSPC, inside the error of the allocator or of iommu_map:
            ``msi_handle_pci_fail`` replaces each error of ``its_irq_domain_alloc``.
        """
        self.translation_of(device)
        try:
            self._core.set_up_msis(
                device, Msis(doorbell, partial(self.programmed.__setitem__, device.address))
            )
        except BackendError as error:
            raise _no_interrupt(error) from error
        return self.programmed[device.address]

    def address_rule(self, device: HostDevice, programmed: Iova) -> Rule:
        """Return the rule by which a device got its address: preset, a slot or a binding."""
        page = programmed.align_down(self.page_size)
        presets = [self.presets.get(mate.address) for mate in (device, *self._mates(device))]
        if any(iova is not None and iova.align_down(self.page_size) == page for iova in presets):
            return rules.PRESET
        if page in self.slots_for(device):
            return rules.SLOT
        handle = self._core.group(device).handle
        if handle is None or handle.sw_msi_start is None:
            return rules.NO_WINDOW
        return rules.CHOOSE_BINDING

    def stage2_rule(self, domain: S2Domain, ipa: Ipa) -> Rule:
        """Return the rule by which an IPA is mapped: a slot, a binding's page, RAM or another."""
        page = ipa.align_down(self.page_size)
        hwpt = self._file_of_s2[domain.handle].fd.hwpt(domain.handle)
        if Iova(page) in hwpt.slots:
            return rules.SLOT_MAPPED
        if hwpt.bindings is not None and hwpt.bindings.has_page(page):
            return rules.BINDING_MAPPED
        in_ram = self.in_ram(ipa)
        return rules.RAM_MAPPED if in_ram else rules.CALLER_MAPPED

    def free_msis(self, device: HostDevice) -> None:
        """Free the interrupts of a device's MSIs."""
        self._core.free_msis(device)

    def bind_guest_msi(self, device: PciAddress, giova: Iova, gdb: Ipa, size: int) -> None:
        """Bind a doorbell for the vDEVICE of a device; see :meth:`NestBindings.bind`.

        :raise BackendError: ENOTTY without the call; EINVAL for a device that is not attached.
        """
        self._check_call(device)
        self._file_of[device].vmm.bind_msi(device, giova, gdb, size)

    def unbind_guest_msi(self, device: PciAddress, giova: Iova) -> None:
        """Withdraw a guest binding, and invalidate.

        :raise BackendError: ENOTTY without the call.
        """
        self._check_call(device)
        self._file_of[device].vmm.unbind_msi(device, giova)

    def _check_call(self, device: PciAddress) -> None:
        if not self.profile.has_bindings:
            raise rules.UNKNOWN_CALL.refusal(
                errno.ENOTTY, f"{device}: {self.profile.name} has no call for guest bindings"
            )

    @property
    def slots(self) -> int:
        """Slots of the software MSI window that are in use."""
        return sum(len(file.fd.slots) for file in self._files)

    def slots_for(self, device: HostDevice) -> list[Iova]:
        """Return the slots of the device's file descriptor: any of them may be its own."""
        handle = self._core.group(device).handle
        if handle is None or handle.sw_msi_start is None:
            return []
        fd = self._file_of[device.address].fd
        return fd.slots.pages(handle.sw_msi_start, self.page_size)

    def close(self) -> None:
        """Close the file descriptors, which frees the slots."""
        for file in self._files:
            file.fd.slots.clear()


def _no_interrupt(error: BackendError) -> BackendError:
    """Return an error of ``its_irq_domain_alloc`` as VFIO_DEVICE_SET_IRQS returns it."""
    return error.seen_as(errno.ENOSPC)
