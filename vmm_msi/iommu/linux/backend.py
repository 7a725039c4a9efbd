"""The backend on a real Linux kernel: /dev/iommu and VFIO devices.

It does what a VMM does: a stage 2 from an IOAS with guest RAM, a vIOMMU with a vDEVICE for each
device, and, in that RAM, the stage 1 tables a guest would keep. Doorbells are watched in one of
two ways (:class:`Doorbells`); docs/lab.md tells what each can show.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError, InputError, VmmMsiError
from vmm_msi.iommu.allocators import SwMsiSlots
from vmm_msi.iommu.backend import BackendInfo, Capability, S2Handle
from vmm_msi.iommu.guest_stage1 import GuestStage1
from vmm_msi.iommu.linux import local_pci
from vmm_msi.iommu.linux.guest_ram import Memory
from vmm_msi.iommu.linux.iommufd import IommuFd
from vmm_msi.iommu.linux.kmsg import KernelLog
from vmm_msi.iommu.linux.msi_outcome import verdict_of
from vmm_msi.iommu.linux.msi_trigger import DmaPages, DmaPool, Trigger
from vmm_msi.iommu.linux.raise_msi import Arrival, Witnesses, trigger_of, watch
from vmm_msi.iommu.linux.stage1 import Stage1Table, TableArena
from vmm_msi.iommu.linux.stage2 import Bound, Stage2
from vmm_msi.iommu.linux.vfio import VfioDevice, is_free
from vmm_msi.types import SW_MSI_WINDOW, Costs, Iova, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

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


class Doorbells(StrEnum):
    """What receives the MSIs."""

    #: The host's own ITS; the kernel alone can map it.
    ITS = "its"
    #: A page of memory for each ITS of the host description, mapped by this process.
    WITNESS = "witness"


#: Guest RAM that is really there, from the start of its first range: enough for its tables.
RAM_BYTES = 4 << 20

#: How far witness pages are from where the guest's memory map has the doorbells: iommufd keeps
#: the software MSI window for itself, so what a guest has there is moved out of it.
WITNESS_OFFSET = 0x0200_0000

_TLBI_NH_ASID = 0x11
_TLBI_NSNH_ALL = 0x30
_ASID_SHIFT = 48


class IommufdBackend:
    """A backend on the running kernel.

    :param host: the host; with witness doorbells it may have any number of ITSes.
    :param guest: its devices are opened and bound here.
    :param doorbells: what receives the MSIs.
    :param profile: with witness doorbells, the kernel whose allocator of doorbell addresses is
        kept here, on the maps of the running kernel.
    :param stand_ins: the device of this machine that plays the part of each of ``guest``'s; a
        device that is not named plays its own.
    :raise BackendError: when /dev/iommu or a device cannot be opened; nothing stays open.

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
        self._doorbells = doorbells
        self._profile = profile
        self._slots = SwMsiSlots()
        self._stage2: dict[S2Handle, Stage2] = {}
        self._of: dict[PciAddress, Stage2] = {}
        self._programmed: dict[PciAddress, Iova] = {}
        #: Devices whose MSI is enabled.
        self._enabled: set[PciAddress] = set()
        #: What makes attached devices send their MSI, and the memory that some take for it.
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
            self._check_witness_room(guest)
            arena = TableArena(self._ram, ram_base)
            self._stage1 = GuestStage1(
                guest,
                lambda stage1, asid: Stage1Table(arena, stage1.granule, asid, self._place),
            )
            self.fd = opened.enter_context(IommuFd())
            playing = {d.host: (stand_ins or {}).get(d.host, d.host) for d in guest.devices}
            for player in playing.values():
                # All of them, before any is bound to another driver.
                is_free(player)
            self._log = KernelLog()
            opened.callback(self._log.close)
            self._pool = DmaPool(self._ram, arena, guest, self._stage1.tables)
            self._devices: dict[PciAddress, VfioDevice] = {}
            self._ids: dict[PciAddress, int] = {}
            for address, player in playing.items():
                device = self._devices[address] = VfioDevice(player)
                opened.callback(device.release)
                device.open()
                self._ids[address] = device.bind(self.fd)
                if self.fd.hw_info(self._ids[address]) is None:
                    raise BackendError(
                        errno.EOPNOTSUPP, f"{player}: is behind an IOMMU that is no SMMUv3"
                    )
            self._can_write = all(device.can_write_msi for device in self._devices.values())
            self._opened = opened.pop_all()

    @property
    def info(self) -> BackendInfo:
        """What the running kernel offers, in the chosen way of watching doorbells."""
        kernel = f"Linux {os.uname().release}"
        can_write = self._can_write
        rewriting = frozenset({Capability.MSI_ADDRESS_WRITE} if can_write else ())
        if self._doorbells is Doorbells.WITNESS:
            capabilities = self._profile.capabilities
            if not can_write:
                capabilities = frozenset()
            kept = "" if self._profile.iommufd else f", rules of {self._profile.name}"
            return BackendInfo(
                "iommufd",
                f"{kernel}, witness doorbells{kept}",
                capabilities,
                "" if can_write else "witness doorbells take MSI capabilities that can be written",
            )
        picks = frozenset({Capability.SW_MSI, Capability.SW_MSI_SLOTS})
        return BackendInfo(
            "iommufd",
            f"{kernel}, the host's own ITS",
            (picks if self._window_everywhere else frozenset()) | rewriting,
            "user space cannot map an ITS, and no kernel that was released takes guest bindings; "
            "witness doorbells would do (--doorbells witness)",
        )

    @property
    def _window_everywhere(self) -> bool:
        return all(self.sw_msi_window(address) is not None for address in self._devices)

    @property
    def page_size(self) -> int:
        """PAGE_SIZE of the running kernel in bytes."""
        return mmap.PAGESIZE

    def sw_msi_window(self, device: PciAddress) -> ReservedRegion | None:
        """Return the device's software MSI window: the kernel's, or that of the allocator here."""
        if self._doorbells is Doorbells.WITNESS:
            return self._host.device_by_address[device].sw_msi_window
        return local_pci.sw_msi_window(self._devices[device].address)

    def _place(self, ipa: int) -> int:
        """Return where an IPA of the guest's memory map really is."""
        if self._doorbells is Doorbells.WITNESS and SW_MSI_WINDOW.overlaps(ipa, 1):
            return ipa + WITNESS_OFFSET
        return ipa

    def _check_witness_room(self, guest: GuestDomain) -> None:
        base = SW_MSI_WINDOW.base + WITNESS_OFFSET
        for ram in guest.memory:
            taken = ram.base < base + SW_MSI_WINDOW.size and base < ram.base + ram.size
            if taken and self._doorbells is Doorbells.WITNESS:
                raise InputError(
                    f"guest {guest.name}: has RAM at {base:#x}, where witness doorbells are; RAM "
                    "from 0x40000000 on, as on QEMU's virt board, would work"
                )

    def alloc_s2(self, smmu: int, *, msi_cookie: bool = True) -> S2Handle:
        """Allocate an IOAS with guest RAM and a nesting parent on it.

        :raise BackendError: ENOENT when no device is behind that SMMU; the kernel's refusal.
        """
        devices = self._host.device_by_address
        behind = next((n for a, n in self._ids.items() if devices[a].smmu == smmu), None)
        if behind is None:
            raise BackendError(errno.ENOENT, f"SMMU {smmu}: no device of the guest is behind it")
        stage2 = Stage2(self.fd, smmu, behind, self._place, self.page_size)
        try:
            self._map_ram(stage2)
        except VmmMsiError:
            stage2.close()
            raise
        if self._doorbells is Doorbells.WITNESS:
            pages: dict[int, int] = {
                its.doorbell.align_down(self.page_size): self._witnesses.address(number)
                for number, its in enumerate(self._host.itses)
            }
            stage2.use_witnesses(pages, self._profile, with_cookie=msi_cookie)
        handle = S2Handle(stage2.hwpt)
        self._stage2[handle] = stage2
        return handle

    def _map_ram(self, stage2: Stage2) -> None:
        """Map the start of guest RAM, and a page of it wherever the MSI window is."""
        for number, ram in enumerate(self._guest.memory):
            size = min(ram.size, RAM_BYTES) if number == 0 else 0
            if size:
                stage2.map_memory(ram.base, size, self._ram.address)
            first = max(ram.base, SW_MSI_WINDOW.base)
            left_out = ram.base + size <= first < ram.base + ram.size
            if left_out and SW_MSI_WINDOW.overlaps(first, 1):
                stage2.map_memory(first, self.page_size, self._scratch.address)

    def has_s2(self, s2: S2Handle) -> bool:
        """Tell whether there is such a stage 2."""
        return s2 in self._stage2

    def free_s2(self, s2: S2Handle) -> None:
        """Destroy a stage 2 and what is on it.

        :raise BackendError: EBUSY while a device is attached.
        """
        stage2 = self._stage2[s2]
        if stage2.devices:
            raise BackendError(errno.EBUSY, f"S2 {s2}: {len(stage2.devices)} devices attached")
        stage2.close()
        del self._stage2[s2]

    def attach(self, device: PciAddress, s2: S2Handle) -> None:
        """Attach a device with its stage 1, after the guest mapped its doorbell there.

        :raise BackendError: the kernel's refusal; nothing is left allocated for the device.
        """
        stage2 = self._stage2[s2]
        host_device = self._host.device_by_address[device]
        guest_device = self._guest.device_by_address[device]
        stage2.msi_domains_check(host_device)
        self._stage1.map_doorbell(guest_device)
        try:
            self._map_dma(guest_device)
            stage2.attach(
                self._devices[device],
                host_device,
                self._mates(host_device),
                {a for s in self._stage2.values() for a in s.vdevices},
                guest_device.stage1,
                self._stage1.tables[guest_device.stage1].ste,
            )
        except VmmMsiError:
            self._unmap_guest_pages(device)
            raise
        self._of[device] = stage2

    def _map_dma(self, device: GuestDevice) -> None:
        """Map memory for a device that takes some to be made to send its MSI."""
        try:
            needs_dma = trigger_of(self._devices[device.host].address).needs_dma
        except BackendError:
            # Said when it is to send one.
            return
        if needs_dma:
            self._dma[device.host] = self._pool.give(device)

    def detach(self, device: PciAddress) -> None:
        """Detach a device: its interrupts, then its translation, then the guest's mapping."""
        stage2 = self._attached(device)
        self._programmed.pop(device, None)
        with ExitStack() as last:
            last.callback(self._take_down, device, stage2)
            if device in self._triggers:
                self._triggers.pop(device).stop()

    def _take_down(self, device: PciAddress, stage2: Stage2) -> None:
        if device in self._enabled:
            self._devices[device].disable_msi()
            self._enabled.remove(device)
        host_device = self._host.device_by_address[device]
        stage2.detach(self._devices[device], host_device, self._mates(host_device))
        del self._of[device]
        self._unmap_guest_pages(device)

    def _mates(self, device: HostDevice) -> dict[PciAddress, Bound]:
        """Return the assigned devices of an IOMMU group, as they are bound here."""
        by_address = self._host.device_by_address
        return {
            address: Bound(number, by_address[address].stream_id)
            for address, number in self._ids.items()
            if by_address[address].iommu_group == device.iommu_group
        }

    def _unmap_guest_pages(self, device: PciAddress) -> None:
        """Unmap what a device's stage 1 has for it, and invalidate as the guest would."""
        guest_device = self._guest.device_by_address[device]
        pages = self._dma.pop(device, None)
        if pages is not None:
            self._pool.take_back(guest_device, pages)
        if self._stage1.unmap_doorbell(guest_device) or pages is not None:
            asid = self._stage1.tables[guest_device.stage1].asid
            for stage2 in self._stage2.values():
                stage2.invalidate(_TLBI_NH_ASID | asid << _ASID_SHIFT)

    def is_attached(self, device: PciAddress) -> bool:
        """Return whether a device is attached."""
        return device in self._of

    def _attached(self, device: PciAddress) -> Stage2:
        stage2 = self._of.get(device)
        if stage2 is None:
            raise BackendError(errno.EINVAL, f"{device}: not attached")
        return stage2

    def map_doorbell(self, s2: S2Handle, gdb: Ipa, its: int) -> None:
        """Map the page that stands for an ITS's doorbell.

        :raise BackendError: the kernel's refusal; EOPNOTSUPP with the host's own ITS.
        """
        page = self._host.its_by_id[its].doorbell.align_down(self.page_size)
        # From inside the kernel, as in the series, nothing stands in the way; where the rules are
        # iommufd's, it is asked for the very address.
        place = gdb if self._profile.iommufd else self._place(gdb)
        self._stage2[s2].map_at(place, gdb, page, self.page_size)

    def unmap_doorbell(self, s2: S2Handle, gdb: Ipa) -> None:
        """Unmap it; the kernel invalidates."""
        self._stage2[s2].unmap(gdb)

    def bind_guest_msi(self, device: PciAddress, giova: Iova, gdb: Ipa, size: int) -> None:
        """Register a guest binding with the allocator kept here.

        :raise BackendError: EOPNOTSUPP where there is none.
        """
        self._attached(device).bindings.bind(device, giova, gdb, size)

    def unbind_guest_msi(self, device: PciAddress, giova: Iova) -> None:
        """Withdraw a guest binding.

        :raise BackendError: EOPNOTSUPP where there is none, or it cannot.
        """
        bindings = self._attached(device).bindings
        if Capability.GUEST_UNBIND not in self._profile.capabilities:
            raise BackendError(
                errno.EOPNOTSUPP, f"{self._profile.name} has no call to withdraw a guest binding"
            )
        bindings.unbind(device, giova)

    def prepare_msi(self, device: PciAddress) -> Iova:
        """Enable the device's MSI; the kernel, or the allocator kept here, picks the address."""
        stage2 = self._attached(device)
        host_device = self._host.device_by_address[device]
        if self._doorbells is Doorbells.WITNESS:
            doorbell = self._host.its_by_id[host_device.its].doorbell
            page = stage2.pick(host_device, doorbell, self._slots)
            return self._program(device, page)
        picked = self._enable(device)
        stage2.kernel_slots.add(picked & -self.page_size)
        self._programmed[device] = picked
        return picked

    def program_msi(self, device: PciAddress, doorbell: Iova) -> Iova:
        """Enable the device's MSI and overwrite the address that the kernel picked."""
        stage2 = self._attached(device)
        if self._doorbells is Doorbells.WITNESS:
            return self._program(device, doorbell)
        picked = self._enable(device)
        stage2.kernel_slots.add(picked & -self.page_size)
        address = doorbell.offset(picked & (self.page_size - 1))
        self._devices[device].set_msi_address(address)
        self._programmed[device] = address
        return address

    def _enable(self, device: PciAddress) -> Iova:
        """Enable the MSI and return the address that the kernel gave it."""
        self._devices[device].enable_bus_master()
        self._devices[device].enable_msi()
        self._enabled.add(device)
        return Iova(self._devices[device].msi_address())

    def _program(self, device: PciAddress, page: Iova) -> Iova:
        """Enable the MSI at a witness page."""
        self._enable(device)
        its = self._host.device_by_address[device].its
        offset = self._host.its_by_id[its].doorbell & (self.page_size - 1)
        address = page.offset(offset)
        self._devices[device].set_msi_address(address, 0)
        self._programmed[device] = address
        return address

    def advertise_rmr(self, window: ReservedRegion) -> None:
        """Let the guest know of an RMR node."""
        self._stage1.advertise(window)

    def withdraw_rmr(self) -> None:
        """Take it back, and have what was cached of it invalidated."""
        self._stage1.withdraw()
        for stage2 in self._stage2.values():
            stage2.invalidate(_TLBI_NSNH_ALL)

    def deliver(self, device: PciAddress) -> Verdict:
        """Make the device send its MSIs and see where they come out.

        With the host's own ITS it is the first of them, and the verdict is of that one alone. With
        witness pages the data, which is the EventID, is set before each, and an MSI counts as
        delivered when its own data arrives.

        :raise BackendError: EINVAL when they are not enabled; EOPNOTSUPP for a device that
            nothing is known to make send one.
        """
        host_device = self._host.device_by_address[device]
        programmed = self._programmed.get(device)
        if programmed is None:
            raise BackendError(errno.EINVAL, f"{device}: its MSIs are not enabled")
        if self._doorbells is Doorbells.ITS:
            verdict = self._verdict(device, self._watch(device))
            return replace(verdict, count=1)
        for vector in range(host_device.vectors):
            self._devices[device].set_msi_address(programmed, vector)
            verdict = self._verdict(device, self._watch(device), vector)
            if verdict.outcome is not Outcome.DELIVERED:
                break
        return verdict

    def _watch(self, device: PciAddress) -> Arrival:
        queues = [s.queue for s in self._stage2.values() if s.queue is not None]
        return watch(self._trigger(device), self._witnesses, queues, self._log)

    def _trigger(self, device: PciAddress) -> Trigger:
        if device not in self._triggers:
            make = trigger_of(self._devices[device].address)
            self._triggers[device] = make(self._devices[device], self._dma.get(device))
        return self._triggers[device]

    def _verdict(self, device: PciAddress, arrival: Arrival, vector: int = 0) -> Verdict:
        host_device = self._host.device_by_address[device]
        programmed = self._programmed[device]
        return verdict_of(self._host, host_device, programmed, arrival, self.page_size, vector)

    def costs(self) -> Costs:
        """Return what is in use now; with the host's own ITS, slots as far as they were seen."""
        every = self._stage2.values()
        seen = {slot for stage2 in every for slot in stage2.kernel_slots}
        return Costs(
            s2_domains=len(every),
            s2_mappings=sum(len(s.doorbells) + len(s.kernel_slots) for s in every),
            sw_msi_slots=len(self._slots) + len(seen) + sum(s.cookie_pages for s in every),
            bindings=sum(s.binding_count for s in every),
        )

    def snapshot(self) -> Hashable:
        """Return everything that a detach undoes, as far as user space knows it."""
        stage2 = Counter(s.state() for s in self._stage2.values())
        return (
            frozenset(stage2.items()),
            self._stage1.state(),
            frozenset(self._programmed.items()),
        )

    def close(self) -> None:
        """Close every device and the file descriptor; the kernel takes everything down.

        A device that had no driver before has none after.

        :raise BackendError: what the kernel refuses, after everything was tried.
        """
        with self._opened as last:
            for handle in self._stage2:
                last.callback(self.free_s2, handle)
            for device in self._of:
                last.callback(self.detach, device)
