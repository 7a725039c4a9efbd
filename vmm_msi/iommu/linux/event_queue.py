"""vEVENTQs: the events that an SMMU reports to a guest.

Linux ``drivers/iommu/iommufd/eventq.c``.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu.linux import uapi
from vmm_msi.iommu.linux.iommufd import LinuxIommufd
from vmm_msi.iommu.smmu_events import decode

if TYPE_CHECKING:
    from vmm_msi.iommu.smmu_events import SmmuEvent

_READ_BYTES = 4096


class EventQueue:
    """A vEVENTQ: the events of the devices of one vIOMMU.

    Linux ``drivers/iommu/iommufd/eventq.c`` iommufd_veventq_fops_read.
    """

    def __init__(self, iommufd: LinuxIommufd, viommu_id: int) -> None:
        self._iommufd = iommufd
        self._id, self._fd = iommufd.veventq_alloc(viommu_id)
        os.set_blocking(self._fd, False)

    def fileno(self) -> int:
        """Return the file descriptor, for poll."""
        return self._fd

    def close_fd(self) -> None:
        """Close the file descriptor; the object stays until /dev/iommu is closed."""
        os.close(self._fd)

    def close(self) -> None:
        """Close the file descriptor and destroy the object."""
        self.close_fd()
        self._iommufd.destroy(self._id)

    def events(self) -> list[SmmuEvent]:
        """Return the events since the last call, with virtual StreamIDs."""
        events: list[SmmuEvent] = []
        while True:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return events
            if not data:
                return events
            at = 0
            while at < len(data):
                header = uapi.VeventHeader.from_buffer_copy(data, at)
                at += ctypes.sizeof(header)
                if not header.flags & uapi.IOMMU_VEVENTQ_FLAG_LOST_EVENTS:
                    event = uapi.VeventArmSmmuv3.from_buffer_copy(data, at)
                    at += ctypes.sizeof(event)
                    events.append(decode(event.evt))


class QueuedIommufd(LinuxIommufd):
    """An open /dev/iommu that gives each vIOMMU a vEVENTQ."""

    def __init__(self) -> None:
        super().__init__()
        #: The vEVENTQs by vIOMMU; they outlive the file descriptor while a device is bound to it.
        self.queues: dict[int, EventQueue] = {}

    def viommu_alloc(self, dev_id: int, hwpt_id: int) -> int:
        """IOMMU_VIOMMU_ALLOC of type ARM_SMMUV3, with a vEVENTQ; return the vIOMMU's id."""
        viommu_id = super().viommu_alloc(dev_id, hwpt_id)
        try:
            self.queues[viommu_id] = EventQueue(self, viommu_id)
        except BackendError:
            super().destroy(viommu_id)
            raise
        return viommu_id

    def destroy(self, number: int) -> None:
        """IOMMU_DESTROY; a vIOMMU's vEVENTQ, which refers to it, is destroyed first."""
        queue = self.queues.pop(number, None)
        if queue is None:
            super().destroy(number)
            return
        queue.close()
        try:
            super().destroy(number)
        except BackendError:
            self.queues[number] = EventQueue(self, number)
            raise

    def close_queues(self) -> None:
        """Close the file descriptors of the vEVENTQs."""
        for queue in self.queues.values():
            queue.close_fd()
        self.queues.clear()
