"""Make a device send its MSI, and see where it comes out."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu.linux import local_pci, uapi
from vmm_msi.iommu.linux.guest_ram import Memory
from vmm_msi.iommu.linux.msi_trigger import EduTrigger, Trigger
from vmm_msi.iommu.linux.nvme import NVME_CLASS, NvmeTrigger
from vmm_msi.iommu.smmu_events import SmmuEvent, decode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm_msi.iommu.linux.iommufd import IommuFd
    from vmm_msi.iommu.linux.kmsg import KernelLog
    from vmm_msi.types import PciAddress

#: How long to wait for something that tells where an MSI went, in seconds.
PATIENCE_S = 1.0
_STEP_S = 0.01

#: What a witness page is filled with; MSI data has 16 bits, so what was written differs.
UNTOUCHED = b"\xff"

#: QEMU's test device.
EDU = (0x1234, 0x11E8)

#: How to make a device send its first MSI, by vendor and device id, and by class.
TRIGGERS: Mapping[tuple[int, int], type[Trigger]] = {EDU: EduTrigger}
CLASS_TRIGGERS: Mapping[int, type[Trigger]] = {NVME_CLASS: NvmeTrigger}


def trigger_of(device: PciAddress) -> type[Trigger]:
    """Return what makes a device send its MSI.

    :raise BackendError: EOPNOTSUPP for a kind of device that is neither in :data:`TRIGGERS` nor in
        :data:`CLASS_TRIGGERS`.
    """
    ids = vendor, number = local_pci.ids_of(device)
    class_code = local_pci.function_of(device).class_code
    found = TRIGGERS.get(ids) or (None if class_code is None else CLASS_TRIGGERS.get(class_code))
    if found is None:
        known = ", ".join(f"{v:04x}:{d:04x}" for v, d in TRIGGERS)
        raise BackendError(
            errno.EOPNOTSUPP,
            f"{device}: how to make a {vendor:04x}:{number:04x} send an MSI is not known; one of "
            f"{known} would work, or an NVMe controller, or a line in TRIGGERS of "
            "vmm_msi/iommu/linux/raise_msi.py",
        )
    return found


class EventQueue:
    """A vEVENTQ: what the SMMU reports of the devices of one vIOMMU.

    Linux ``drivers/iommu/iommufd/eventq.c`` iommufd_veventq_fops_read.
    """

    def __init__(self, iommufd: IommuFd, viommu: int) -> None:
        self._iommufd = iommufd
        self._id, self._fd = iommufd.veventq_alloc(viommu)
        os.set_blocking(self._fd, False)

    def fileno(self) -> int:
        """Return the file descriptor, for poll."""
        return self._fd

    def close_fd(self) -> None:
        """Close it; the object goes with the vIOMMU's file descriptor."""
        os.close(self._fd)

    def close(self) -> None:
        """Close and destroy it."""
        self.close_fd()
        self._iommufd.destroy(self._id)

    def events(self) -> list[SmmuEvent]:
        """Return the events since the last call, with virtual StreamIDs."""
        found: list[SmmuEvent] = []
        while True:
            try:
                data = os.read(self._fd, 4096)
            except BlockingIOError:
                return found
            if not data:
                return found
            at = 0
            while at < len(data):
                header = uapi.VeventHeader.from_buffer_copy(data, at)
                at += ctypes.sizeof(header)
                if not header.flags & uapi.IOMMU_VEVENTQ_FLAG_LOST_EVENTS:
                    event = uapi.VeventArmSmmuv3.from_buffer_copy(data, at)
                    at += ctypes.sizeof(event)
                    found.append(decode(event.evt))


class Witnesses:
    """Adjacent pages of memory that stand for doorbells.

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
        """Forget what was written."""
        self.memory.fill(UNTOUCHED)

    def written(self) -> tuple[int, int, int] | None:
        """Return page, offset and data of the first 32 bits that were written; None for none."""
        content = self.memory.content()
        if content == self._untouched:
            return None
        at = len(content) - len(content.lstrip(UNTOUCHED)) & ~3
        page, offset = divmod(at, self.page_size)
        return page, offset, int.from_bytes(content[at : at + 4], "little")

    def close(self) -> None:
        """Give the memory back."""
        self.memory.close()


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where one MSI came out: one of these, or none where nobody was told.

    :param interrupt: the real ITS took it and the eventfd was signalled.
    :param written: page, offset and data of the witness page that was written.
    :param event: the SMMU's event.
    :param logged: the event was in the kernel's log, so that its StreamID is the physical one.
    :param sent: MSIs are on in the device; one that is not sent arrives nowhere.
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
    """Make a device send its MSI and return where it came out.

    Faults at addresses other than the one in the device are those of others, as a host has them
    in its log at any time.

    :raise BackendError: when the device does not do what it takes.
    """
    device = trigger.device
    log.events()
    log.wait_for_room()
    # What arrived while waiting is not from this MSI either.
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
        # Nothing tells of a page that is written, so it is looked at again and again.
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
