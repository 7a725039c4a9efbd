"""Make a device send its MSI, and watch where it arrives."""

from __future__ import annotations

import errno
import select
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError, InputError
from vmm_msi.iommu.linux import local_pci
from vmm_msi.iommu.linux.guest_ram import Memory
from vmm_msi.iommu.linux.msi_trigger import EduTrigger, Trigger
from vmm_msi.iommu.linux.nvme import NVME_CLASS, NvmeTrigger
from vmm_msi.types import SW_MSI_WINDOW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vmm_msi.iommu.linux.event_queue import EventQueue
    from vmm_msi.iommu.linux.iommufd import LinuxIommufd
    from vmm_msi.iommu.linux.kmsg import KernelLog
    from vmm_msi.iommu.linux.vfio import VfioDevice
    from vmm_msi.iommu.smmu_events import SmmuEvent
    from vmm_msi.types import GuestDomain, PciAddress

#: How long to wait for a sign of where an MSI went, in seconds.
PATIENCE_S = 1.0
_STEP_S = 0.01

#: The fill byte of a witness page; MSI data has 16 bits, so a written word differs.
UNTOUCHED = b"\xff"

#: Distance of witness pages from the doorbells' IPAs in the guest's memory map. iommufd keeps the
#: software MSI window for itself, so witness pages are moved out of it.
WITNESS_OFFSET = 0x0200_0000

#: QEMU's test device.
EDU = (0x1234, 0x11E8)

#: How to make a device send its first MSI, by vendor id and device id, and by class.
TRIGGERS: Mapping[tuple[int, int], type[Trigger]] = {EDU: EduTrigger}
CLASS_TRIGGERS: Mapping[int, type[Trigger]] = {NVME_CLASS: NvmeTrigger}


def trigger_of(device: PciAddress) -> type[Trigger]:
    """Return the trigger for a device's MSI.

    :raise BackendError: EOPNOTSUPP for a device that is neither in :data:`TRIGGERS` nor in
        :data:`CLASS_TRIGGERS`.
    """
    ids = vendor, number = local_pci.ids_of(device)
    class_code = local_pci.function_of(device).class_code
    trigger = TRIGGERS.get(ids) or (None if class_code is None else CLASS_TRIGGERS.get(class_code))
    if trigger is None:
        known = ", ".join(f"{v:04x}:{d:04x}" for v, d in TRIGGERS)
        raise BackendError(
            errno.EOPNOTSUPP,
            f"{device}: how to make a {vendor:04x}:{number:04x} send an MSI is not known; use one "
            f"of {known} or an NVMe controller, or add a line to TRIGGERS of "
            "vmm_msi/iommu/linux/raise_msi.py",
        )
    return trigger


def relocated(ipa: int) -> int:
    """Return the IPA of the witness page for an IPA of the guest's memory map."""
    return ipa + WITNESS_OFFSET if SW_MSI_WINDOW.overlaps(ipa, 1) else ipa


def check_room(guest: GuestDomain) -> None:
    """Check that a guest has no RAM where witness pages are.

    :raise InputError: when it has.
    """
    base = SW_MSI_WINDOW.base + WITNESS_OFFSET
    for ram in guest.memory:
        if ram.base < base + SW_MSI_WINDOW.size and base < ram.base + ram.size:
            raise InputError(
                f"guest {guest.name}: has RAM at {base:#x}, where witness doorbells are; use "
                "RAM from 0x40000000 on, as on QEMU's virt board"
            )


@contextmanager
def enabled_apart(
    fd: LinuxIommufd,
    device: VfioDevice,
    enable: Callable[[], object],
    disable: Callable[[], object],
) -> Iterator[None]:
    """Enable a device's MSI in an empty address space, from which the block moves the device.

    An MSI that is refused an address when it is enabled costs the device an event of its ITS until
    the host reboots. An MSI that is enabled before its device is moved keeps its slot.

    :raise BackendError: the kernel's refusal.
    """
    ioas = fd.ioas_alloc()
    try:
        with ExitStack() as undo:
            device.attach(ioas)
            undo.callback(device.detach)
            enable()
            undo.callback(disable)
            yield
            undo.pop_all()
    finally:
        fd.destroy(ioas)


class Witnesses:
    """Witness pages: adjacent pages of memory in place of doorbells.

    :param count: number of pages, counted from 0.
    :param page_size: PAGE_SIZE in bytes.
    """

    def __init__(self, count: int, page_size: int) -> None:
        self.page_size = page_size
        self.memory = Memory(max(count, 1) * page_size)
        self._untouched = UNTOUCHED * self.memory.size
        self.wipe()

    def address(self, page: int) -> int:
        """Return the virtual address of a page."""
        return self.memory.address + page * self.page_size

    def wipe(self) -> None:
        """Reset all pages."""
        self.memory.fill(UNTOUCHED)

    def written(self) -> tuple[int, int, int] | None:
        """Return page, offset and data of the first word of 32 bits written; None for none."""
        content = self.memory.content()
        if content == self._untouched:
            return None
        word = len(content) - len(content.lstrip(UNTOUCHED)) & ~3
        page, offset = divmod(word, self.page_size)
        return page, offset, int.from_bytes(content[word : word + 4], "little")

    def close(self) -> None:
        """Free the memory."""
        self.memory.close()


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where one MSI arrived: at most one of interrupt, witness page and event.

    :param interrupt: the real ITS translated it and the eventfd was signalled.
    :param written: page, offset and data of the witness page that was written to.
    :param event: the SMMU's event.
    :param logged: the event was in the kernel's log, so its StreamID is the physical one.
    :param sent: MSIs are enabled in the device; otherwise nothing was sent.
    """

    interrupt: bool = False
    written: tuple[int, int, int] | None = None
    event: SmmuEvent | None = None
    logged: bool = False
    sent: bool = True


def watch(
    trigger: Trigger,
    witnesses: Witnesses,
    queues: Sequence[EventQueue],
    log: KernelLog,
) -> Arrival:
    """Make a device send its MSI and return where it arrived.

    Faults at addresses other than the one in the device are ignored: they belong to other devices
    of the host.

    :raise BackendError: when the device cannot be made to send it.
    """
    device = trigger.device
    log.events()
    log.wait_for_room()
    # Events that arrived during the wait do not belong to this MSI either.
    witnesses.wipe()
    device.take_interrupts()
    for queue in queues:
        queue.events()
    log.events()
    device.enable_bus_master()
    trigger.send()
    if not device.sends_msi:
        return Arrival(sent=False)
    address = device.msi_address()
    poll = select.poll()
    for source in (*(queue.fileno() for queue in queues), log.fileno(), device.event_fd):
        if source is not None:
            poll.register(source, select.POLLIN)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        # A write to a page of memory signals nothing, so the pages are polled.
        written = witnesses.written()
        if written is not None:
            return Arrival(written=written)
        if device.take_interrupts():
            return Arrival(interrupt=True)
        for queue in queues:
            for event in queue.events():
                if event.may_be_of(address):
                    return Arrival(event=event)
        for event in log.events():
            if event.may_be_of(address):
                return Arrival(event=event, logged=True)
        left = deadline - time.monotonic()
        if left <= 0:
            return Arrival()
        poll.poll(min(left, _STEP_S) * 1000)
