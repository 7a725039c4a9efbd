"""The backend on a real Linux kernel: /dev/iommu and VFIO devices.

It does what a VMM does (:mod:`vmm_msi.iommu.vmm`), with a guest's stage 1 tables in guest RAM.
Doorbells are watched in one of two ways (:class:`Doorbells`); docs/lab.md says what each can show.
"""

from __future__ import annotations

import errno
import mmap
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError, InputError
from vmm_msi.iommu.backend import (
    BackendInfo,
    MsiAllocator,
    S2Handle,
    no_own_file,
    no_preset_action,
    no_window_option,
)
from vmm_msi.iommu.guest_stage1 import GuestStage1
from vmm_msi.iommu.linux import abilities, local_pci
from vmm_msi.iommu.linux.abilities import Doorbells
from vmm_msi.iommu.linux.event_queue import QueuedIommufd
from vmm_msi.iommu.linux.guest_ram import Memory, ram_mappings
from vmm_msi.iommu.linux.kmsg import KernelLog
from vmm_msi.iommu.linux.msi_outcome import verdict_of
from vmm_msi.iommu.linux.msi_trigger import DmaPages, DmaPool, Trigger
from vmm_msi.iommu.linux.raise_msi import (
    Arrival,
    Witnesses,
    check_room,
    enabled_apart,
    relocated,
    trigger_of,
    watch,
)
from vmm_msi.iommu.linux.stage1 import Stage1Table, TableArena
from vmm_msi.iommu.linux.stage2 import Stage2Tables
from vmm_msi.iommu.linux.vfio import VfioDevice, is_free
from vmm_msi.iommu.vmm import Vmm, VmmDevice
from vmm_msi.types import Costs, Iova, Outcome, Verdict
from vmm_msi.types.verdict import possible_addresses

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.types import (
        GuestDevice,
        GuestDomain,
        HostDevice,
        HostTopology,
        Ipa,
        PciAddress,
        ReservedRegion,
    )


#: Bytes of guest RAM that exist, from the start of its first range: enough for its tables.
RAM_BYTES = 4 << 20

#: MSIs are 32-bit writes: the last address that can be in a device.
_LAST_ADDRESS = Iova((1 << 64) - 4)

_TLBI_NH_ASID = 0x11
_TLBI_NSNH_ALL = 0x30
_ASID_SHIFT = 48


class IommufdBackend:
    """A backend on the running kernel.

    :param host: the host; with witness doorbells it may have any number of ITSes.
    :param guest: its devices are opened and bound.
    :param doorbells: the receiver of the MSIs.
    :param profile: with witness doorbells, the kernel whose allocator of doorbell addresses is
        simulated on the mappings of the running kernel.
    :param stand_ins: the device of this machine to use for each of ``guest``'s devices; a missing
        device is used itself.
    :raise BackendError: when /dev/iommu or a device cannot be opened; nothing stays open.
    :raise InputError: for a guest with a stage 1 that does not translate.

    A device without driver is bound to vfio-pci until the backend is closed.
    """

    def __init__(
        self,
        host: HostTopology,
        guest: GuestDomain,
        doorbells: Doorbells,
        profile: Profile,
        stand_ins: Mapping[PciAddress, PciAddress] | None = None,
    ) -> None:
        self._host = host
        self._guest = guest
        self._mode = doorbells
        self._profile = profile
        for stage1 in guest.stage1:
            if not stage1.translates:
                raise InputError(
                    f"guest {guest.name}, stage 1 {stage1.id}: config {stage1.config} is available "
                    "in the simulator only; use config translate"
                )
        self._programmed: dict[PciAddress, Iova] = {}
        #: Devices whose MSI is enabled.
        self._enabled: set[PciAddress] = set()
        #: The triggers of attached devices' MSIs, and the memory that some of them need.
        self._triggers: dict[PciAddress, Trigger] = {}
        self._dma: dict[PciAddress, DmaPages] = {}
        with ExitStack() as opened:
            self._ram = Memory(RAM_BYTES)
            opened.callback(self._ram.close)
            self._scratch = Memory(self.page_size)
            opened.callback(self._scratch.close)
            self._witnesses = Witnesses(len(host.itses), self.page_size)
            opened.callback(self._witnesses.close)
            ram_base = guest.memory[0].base if guest.memory else 0
            if doorbells is Doorbells.WITNESS:
                check_room(guest)
            arena = TableArena(self._ram, ram_base)
            self._stage1 = GuestStage1(
                guest,
                lambda stage1, asid: Stage1Table(arena, stage1.granule, asid, self._relocate),
            )
            self.fd = opened.enter_context(QueuedIommufd())
            real = {d.host: (stand_ins or {}).get(d.host, d.host) for d in guest.devices}
            # Check all of them before the first is bound to another driver.
            for address in real.values():
                is_free(address)
            self._log = KernelLog()
            opened.callback(self._log.close)
            self._pool = DmaPool(self._ram, arena, guest, self._stage1.tables)
            self._devices: dict[PciAddress, VfioDevice] = {}
            bound = [self._open_device(opened, *pair) for pair in real.items()]
            self._vmm: Vmm[Sequence[int]] = Vmm(self.fd, bound)
            witnesses = self._witnesses if doorbells is Doorbells.WITNESS else None
            #: The running kernel has the interface for guest MSI bindings.
            self._binds = self.fd.has_msi_bindings
            self._stage2 = Stage2Tables(
                self._vmm,
                host,
                guest,
                profile,
                partial(ram_mappings, guest.memory, self._ram, self._scratch),
                witnesses,
                self._relocate,
                retake=self._retake,
                binds=self._binds,
            )
            self._can_write = all(device.can_write_msi for device in self._devices.values())
            self._opened = opened.pop_all()

    def _open_device(self, opened: ExitStack, address: PciAddress, real: PciAddress) -> VmmDevice:
        """Open and bind the device of this machine that stands in for a device of the host.

        :raise BackendError: EOPNOTSUPP for a device behind another IOMMU; the kernel's refusal.
        """
        device = self._devices[address] = VfioDevice(real)
        opened.callback(device.release)
        device.open()
        dev_id = device.bind(self.fd)
        if self.fd.hw_info(dev_id) is None:
            raise BackendError(
                errno.EOPNOTSUPP, f"{real}: is behind an IOMMU that is not an SMMUv3"
            )
        return VmmDevice(self._host.device_by_address[address], dev_id, device)

    @property
    def info(self) -> BackendInfo:
        """Name, kernel and capabilities, with the chosen receiver of MSIs."""
        if self._mode is Doorbells.WITNESS:
            return abilities.with_witnesses(self._profile, can_write=self._can_write)
        return abilities.with_its(
            self._profile,
            can_write=self._can_write,
            windows=self._window_everywhere,
            binds=self._binds,
        )

    @property
    def _window_everywhere(self) -> bool:
        return all(self.sw_msi_window(address) is not None for address in self._devices)

    @property
    def page_size(self) -> int:
        """PAGE_SIZE of the running kernel in bytes."""
        return mmap.PAGESIZE

    def sw_msi_window(self, device: PciAddress) -> ReservedRegion | None:
        """Return the device's software MSI window: the kernel's, or the simulated allocator's."""
        if self._mode is Doorbells.WITNESS:
            return self._host.device_by_address[device].sw_msi_window
        return local_pci.sw_msi_window(self._devices[device].address)

    def move_sw_msi_window(self, device: PciAddress, window: ReservedRegion | None) -> None:  # noqa: ARG002
        """Refuse: no released kernel has IOMMU_OPTION_SW_MSI_START.

        :raise BackendError: EOPNOTSUPP, as ``iommufd_option`` answers.
        """
        raise no_window_option(device, "the running kernel", "; use --backend sim")

    def preset_msi(self, device: PciAddress, giova: Iova | None) -> None:
        """Refuse: no released kernel has VFIO_IRQ_SET_ACTION_PREPARE.

        :raise BackendError: EINVAL, as ``vfio_set_irqs_validate_and_prepare`` answers.
        """
        raise no_preset_action(device, giova, "the running kernel", "; use --backend sim")

    def _relocate(self, ipa: int) -> int:
        """Return the IPA at which a page is mapped for an IPA of the guest's memory map."""
        return relocated(ipa) if self._mode is Doorbells.WITNESS else ipa

    def alloc_s2(
        self,
        smmu: int,
        *,
        allocator: MsiAllocator = MsiAllocator.KERNEL,
        own_file: PciAddress | None = None,
    ) -> S2Handle:
        """Allocate a stage 2; see :meth:`Vmm.alloc_s2` and :meth:`Type1.alloc_s2`.

        :raise BackendError: ENOENT when no device is behind that SMMU; the kernel's refusal;
            EOPNOTSUPP for ``own_file``.
        """
        if own_file is not None:
            raise no_own_file("this backend")
        return self._stage2.alloc(smmu, allocator)

    def free_s2(self, s2: S2Handle) -> None:
        """Free a stage 2; see :meth:`Vmm.free_s2` and :meth:`Type1.free_s2`.

        :raise BackendError: EBUSY while a device is attached.
        """
        self._stage2.free(s2)

    def attach(self, device: PciAddress, s2: S2Handle) -> S2Handle:
        """Attach a device with its stage 1, where the guest then maps its doorbell.

        :raise BackendError: the kernel's refusal; nothing is left allocated for the device.
        """
        host_device = self._host.device_by_address[device]
        guest_device = self._guest.device_by_address[device]
        with ExitStack() as undo:
            s2 = self._stage2.join(host_device, s2, guest_device.stage1)
            undo.callback(self._stage2.leave, host_device)
            undo.callback(self._unmap_guest_pages, device)
            self._map_dma(guest_device)
            ste = self._stage1.tables[guest_device.stage1].ste
            with self._enabled_apart(host_device, s2):
                handle = self._stage2.doorbells(s2).handle
                self._vmm.attach(device, handle, guest_device.stage1, ste)
            undo.callback(self._vmm.detach, device)
            self._stage1.add_device(guest_device)
            undo.pop_all()
        return s2

    def _enabled_apart(self, device: HostDevice, s2: S2Handle) -> AbstractContextManager[None]:
        """Have the MSI of a device enabled that joins others with bindings in the kernel.

        Those may leave it without an address.
        """
        address, binds = device.address, self._binds and self._mode is Doorbells.ITS
        mates = [d.address for d in self._host.devices if d.iommu_group == device.iommu_group]
        alone = not any(map(self._vmm.is_attached, mates))
        if not (binds and alone and self._stage2.doorbells(s2).binding_count):
            return nullcontext()
        enable, disable = partial(self._enable, address), partial(self._disable, address)
        return enabled_apart(self.fd, self._devices[address], enable, disable)

    def _map_dma(self, device: GuestDevice) -> None:
        """Map memory for a device whose trigger needs some."""
        try:
            needs_dma = trigger_of(self._devices[device.host].address).needs_dma
        except BackendError:
            # deliver reports it.
            return
        if needs_dma:
            self._dma[device.host] = self._pool.map(device)

    def detach(self, device: PciAddress) -> None:
        """Detach a device: its interrupts, then its translation, then the guest's device."""
        self._vmm.s2_of(device)
        self._programmed.pop(device, None)
        with ExitStack() as last:
            last.callback(self._take_down, device)
            if device in self._triggers:
                self._triggers.pop(device).stop()

    def _disable(self, device: PciAddress) -> None:
        """Disable the device's MSI, if it is enabled."""
        self._programmed.pop(device, None)
        if device in self._enabled:
            self._devices[device].disable_msi()
            self._enabled.remove(device)

    def _take_down(self, device: PciAddress) -> None:
        self._disable(device)
        self._vmm.detach(device)
        self._stage2.leave(self._host.device_by_address[device])
        self._unmap_guest_pages(device)

    def _unmap_guest_pages(self, device: PciAddress) -> None:
        """Remove a device from its stage 1, and invalidate as the guest would."""
        guest_device = self._guest.device_by_address[device]
        pages = self._dma.pop(device, None)
        if pages is not None:
            self._pool.unmap(guest_device, pages)
        if self._stage1.remove_device(guest_device) or pages is not None:
            asid = self._stage1.tables[guest_device.stage1].asid
            self._invalidate(_TLBI_NH_ASID | asid << _ASID_SHIFT)

    def _invalidate(self, command: int) -> None:
        """Issue an invalidation in every vIOMMU; without one nothing is cached."""
        for s2 in self._vmm.stage2.values():
            if s2.viommu is not None:
                self.fd.invalidate(s2.viommu, [(command, 0)])

    def is_attached(self, device: PciAddress) -> bool:
        """Return whether a device is attached."""
        return self._vmm.is_attached(device)

    def map_doorbell(self, s2: S2Handle, gdb: Ipa, its: int) -> None:
        """Map the page of memory for an ITS's doorbell.

        :raise BackendError: the kernel's refusal; EOPNOTSUPP with the host's own ITS.
        """
        page = self._host.its_by_id[its].doorbell.align_down(self.page_size)
        # Where user space maps the page, the kernel has to accept the address itself. Where the
        # caller is in the kernel, nothing refuses it, so the page may be moved.
        target = self._relocate(gdb) if self._profile.maps_doorbells else gdb
        self._stage2.doorbells(s2).map_at(target, gdb, page, self.page_size)

    def unmap_doorbell(self, s2: S2Handle, gdb: Ipa) -> None:
        """Unmap a doorbell; the kernel invalidates."""
        self._stage2.doorbells(s2).unmap(gdb)

    def bind_guest_msi(self, device: PciAddress, giova: Iova, gdb: Ipa, size: int) -> None:
        """Register a guest binding with the simulated allocator.

        :raise BackendError: ENOTTY without an allocator that takes bindings.
        """
        host_device = self._host.device_by_address[device]
        if self._binds and self._mode is Doorbells.ITS and device not in self._enabled:
            # At its slot: an MSI that gets no address costs an event of the ITS until a reboot.
            self._stage2.of(device)
            self._enable(device)
        self._stage2.bind(host_device, giova, gdb, size)
        self._read_back()

    def unbind_guest_msi(self, device: PciAddress, giova: Iova) -> None:
        """Withdraw a guest binding.

        :raise BackendError: ENOTTY without an allocator that can do that.
        """
        if self._profile.iommufd:
            # They would take another address.
            self._disable(device)
        self._stage2.unbind(self._host.device_by_address[device], giova)
        self._read_back()

    def _retake(self, device: PciAddress) -> None:
        """Make a device's MSI, if it is enabled, take its address again."""
        if device in self._programmed:
            self._program(device, self._pick(device))

    def _read_back(self) -> None:
        """Note the addresses that the kernel may have written into devices."""
        if self._mode is Doorbells.ITS:
            for device in self._programmed:
                self._programmed[device] = Iova(self._devices[device].msi_address())

    def _pick(self, device: PciAddress) -> Iova | None:
        """Return the address that the simulated allocator picks; None for all ones."""
        host_device = self._host.device_by_address[device]
        return self._stage2.pick(host_device, self._host.its_by_id[host_device.its].doorbell)

    def prepare_msi(self, device: PciAddress) -> Iova:
        """Enable the device's MSI; the kernel or the simulated allocator picks the address."""
        doorbells = self._stage2.of(device)
        if self._mode is Doorbells.WITNESS:
            return self._program(device, self._pick(device))
        if self._binds and device in self._enabled:
            try:
                self._vmm.prepare_msi(device)
            except BackendError as error:
                # What VFIO_DEVICE_SET_IRQS returns for it.
                raise error.seen_as(errno.ENOSPC) from error
        picked = self._enable(device)
        doorbells.note_slot(picked, self.sw_msi_window(device))
        self._programmed[device] = picked
        return picked

    def program_msi(self, device: PciAddress, doorbell: Iova) -> Iova:
        """Enable the device's MSI and overwrite the address that the kernel picked."""
        doorbells = self._stage2.of(device)
        if self._mode is Doorbells.WITNESS:
            its = self._host.its_by_id[self._host.device_by_address[device].its]
            return self._program(device, doorbell.offset(its.doorbell & (self.page_size - 1)))
        picked = self._enable(device)
        doorbells.note_slot(picked, self.sw_msi_window(device))
        address = doorbell.offset(picked & (self.page_size - 1))
        self._devices[device].set_msi_address(address)
        self._programmed[device] = address
        return address

    def _enable(self, device: PciAddress) -> Iova:
        """Enable the MSI and return the address that the kernel picked."""
        self._devices[device].enable_bus_master()
        self._devices[device].enable_msi()
        self._enabled.add(device)
        return Iova(self._devices[device].msi_address())

    def _program(self, device: PciAddress, picked: Iova | None) -> Iova:
        """Enable the MSI at a witness page, or without one at the last address that MSIs have."""
        self._enable(device)
        address = _LAST_ADDRESS if picked is None else picked
        self._devices[device].set_msi_address(address, 0)
        self._programmed[device] = address
        return address

    def advertise_rmr(self, window: ReservedRegion) -> None:
        """Add an RMR node to the guest's IORT."""
        self._stage1.advertise(window)

    def withdraw_rmr(self) -> None:
        """Remove the RMR nodes, and invalidate."""
        self._stage1.withdraw()
        self._invalidate(_TLBI_NSNH_ALL)

    def deliver(self, device: PciAddress) -> Verdict:
        """Make the device send its MSIs and return where they arrive.

        With the host's own ITS only the first MSI is sent, and the verdict covers that one alone.
        With witness pages each MSI is sent with its own data, the EventID, and is delivered when
        that data arrives.

        :raise BackendError: EINVAL when they are not enabled; EOPNOTSUPP for a device without a
            known trigger.
        """
        host_device = self._host.device_by_address[device]
        programmed = self._programmed.get(device)
        if programmed is None:
            raise BackendError(errno.EINVAL, f"{device}: its MSIs are not enabled")
        if self._mode is Doorbells.ITS:
            verdict = self._verdict(device, self._watch(device))
            return replace(verdict, count=1)
        for vector in range(host_device.vectors):
            self._devices[device].set_msi_address(programmed, vector)
            verdict = self._verdict(device, self._watch(device), vector)
            if verdict.outcome is not Outcome.DELIVERED:
                break
        return verdict

    def _watch(self, device: PciAddress) -> Arrival:
        queues = list(self.fd.queues.values())
        return watch(self._trigger(device), self._witnesses, queues, self._log)

    def _trigger(self, device: PciAddress) -> Trigger:
        if device not in self._triggers:
            kind = trigger_of(self._devices[device].address)
            self._triggers[device] = kind(self._devices[device], self._dma.get(device))
        return self._triggers[device]

    def _verdict(self, device: PciAddress, arrival: Arrival, vector: int = 0) -> Verdict:
        host_device = self._host.device_by_address[device]
        programmed = self._programmed[device]
        verdict = verdict_of(self._host, host_device, programmed, arrival, self.page_size, vector)
        slots = self._stage2.slots_for(host_device)
        return replace(verdict, possible=possible_addresses(programmed, slots, self.page_size))

    def costs(self) -> Costs:
        """Return the resources in use; with the host's ITS, slots seen in device addresses only."""
        return self._stage2.costs()

    def snapshot(self) -> Hashable:
        """Return everything that a detach undoes, as far as user space can tell."""
        return (
            self._stage2.state(),
            self._stage1.state(),
            frozenset(self._programmed.items()),
        )

    def close(self) -> None:
        """Close every device and the file descriptor; the kernel frees the rest.

        A device that had no driver before has none after.

        :raise BackendError: the kernel's refusal, after everything was tried.
        """
        with self._opened as last:
            for s2 in list(self._vmm.stage2.values()):
                last.callback(self._stage2.drop, s2.handle)
                for device in s2.devices:
                    last.callback(self.detach, device)
