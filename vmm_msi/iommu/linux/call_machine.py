"""A host with a real kernel, for the steps of :mod:`vmm_msi.iommu.call_sequence`."""

from __future__ import annotations

import errno
import mmap
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu.call_sequence import (
    RAM_BASE,
    RAM_PAGE,
    RAM_SIZE,
    WITNESSES,
    Landing,
    LandingKind,
    NestedConfig,
    Stage1Shape,
)
from vmm_msi.iommu.linux.guest_ram import Memory
from vmm_msi.iommu.linux.iommufd import IommuFd
from vmm_msi.iommu.linux.kmsg import KernelLog
from vmm_msi.iommu.linux.raise_msi import EventQueue, Witnesses, trigger_of, watch
from vmm_msi.iommu.linux.stage1 import (
    STE_CONFIG_ABORT,
    STE_CONFIG_BYPASS,
    STE_VALID,
    Stage1Table,
    TableArena,
)
from vmm_msi.iommu.linux.vfio import VfioDevice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_msi.types import PciAddress

# STE.STRW, which is not in STRTAB_STE_1_NESTING_ALLOWED.
_STE_1_NOT_ALLOWED = 1 << 30


class LinuxMachine:
    """The machine this runs on, as :class:`vmm_msi.iommu.call_sequence.Machine`.

    :param addresses: its test devices, in the order of their numbers.
    """

    def __init__(self, addresses: Sequence[PciAddress]) -> None:
        self._log = KernelLog()
        try:
            self._devices = [VfioDevice(address) for address in addresses]
        except BaseException:
            self._log.close()
            raise
        self._fds: list[IommuFd] = []
        self._queues: dict[tuple[int, int], EventQueue] = {}
        self._ram = Memory(RAM_SIZE)
        self._arena = TableArena(self._ram, RAM_BASE)
        self._witnesses = Witnesses(WITNESSES, mmap.PAGESIZE)
        self._tables: list[Stage1Table] = []

    @property
    def devices(self) -> int:
        """Number of devices."""
        return len(self._devices)

    def prepare(self, stage1: Sequence[Stage1Shape]) -> None:
        """Build the stage 1 tables."""
        self._arena.clear()
        for shape in stage1:
            table = Stage1Table(self._arena, shape.granule, shape.asid)
            for iova, ipa in shape.pages:
                table.map(iova, ipa, shape.granule)
            self._tables.append(table)

    def reset(self) -> None:
        """Close everything."""
        for device in self._devices:
            if device.is_open:
                device.close()
        for queue in self._queues.values():
            queue.close_fd()
        self._queues.clear()
        for fd in self._fds:
            fd.close()
        self._fds.clear()
        self._tables.clear()
        self._arena.clear()

    def close(self, fd: int) -> None:
        """Close a file descriptor of /dev/iommu."""
        self._iommufd(fd).close()

    def open(self) -> int:
        """Open /dev/iommu."""
        self._fds.append(IommuFd())
        return len(self._fds) - 1

    def _iommufd(self, fd: int) -> IommuFd:
        if fd not in range(len(self._fds)) or self._fds[fd].fd < 0:
            raise BackendError(errno.EBADF, f"file descriptor {fd}: is not open")
        return self._fds[fd]

    def _open_device(self, device: int) -> VfioDevice:
        found = self._devices[device]
        if not found.is_open:
            raise BackendError(errno.EBADF, f"{found.address}: its character device is not open")
        return found

    def bind(self, fd: int, device: int) -> int:
        """Open the character device where it is not open, and bind it."""
        iommufd, found = self._iommufd(fd), self._devices[device]
        if not found.is_open:
            found.open()
        return found.bind(iommufd)

    def unbind(self, device: int) -> None:
        """Close the character device."""
        self._open_device(device).close()

    def ioas_alloc(self, fd: int) -> int:
        """IOMMU_IOAS_ALLOC."""
        return self._iommufd(fd).ioas_alloc()

    def ioas_map(self, fd: int, ioas: int, iova: int, size: int, page: int) -> None:
        """IOMMU_IOAS_MAP."""
        ram = self._ram.address
        address = ram if page == RAM_PAGE else self._witnesses.address(page - 1)
        self._iommufd(fd).ioas_map(ioas, iova, size, address)

    def ioas_unmap(self, fd: int, ioas: int, iova: int, size: int) -> int:
        """IOMMU_IOAS_UNMAP."""
        return self._iommufd(fd).ioas_unmap(ioas, iova, size)

    def hwpt_alloc(self, fd: int, dev_id: int, ioas: int, *, nest_parent: bool) -> int:
        """IOMMU_HWPT_ALLOC on an IOAS."""
        return self._iommufd(fd).hwpt_alloc(dev_id, ioas, nest_parent=nest_parent)

    def viommu_alloc(self, fd: int, dev_id: int, hwpt: int) -> int:
        """IOMMU_VIOMMU_ALLOC, and a vEVENTQ on it."""
        iommufd = self._iommufd(fd)
        viommu = iommufd.viommu_alloc(dev_id, hwpt)
        self._queues[fd, viommu] = EventQueue(iommufd, viommu)
        return viommu

    def vdevice_alloc(self, fd: int, viommu: int, dev_id: int, virt_id: int) -> int:
        """IOMMU_VDEVICE_ALLOC."""
        return self._iommufd(fd).vdevice_alloc(viommu, dev_id, virt_id)

    def hwpt_alloc_nested(
        self, fd: int, dev_id: int, viommu: int, config: NestedConfig, stage1: int
    ) -> int:
        """IOMMU_HWPT_ALLOC on a vIOMMU."""
        first, second = self._tables[stage1].ste if self._tables else (STE_VALID, 0)
        match config:
            case NestedConfig.BYPASS:
                ste = (STE_VALID | STE_CONFIG_BYPASS, 0)
            case NestedConfig.ABORT:
                ste = (STE_VALID | STE_CONFIG_ABORT, 0)
            case NestedConfig.INVALID:
                ste = (first, second | _STE_1_NOT_ALLOWED)
            case NestedConfig.TRANSLATE:
                ste = (first, second)
        return self._iommufd(fd).hwpt_alloc_nested(dev_id, viommu, ste)

    def attach(self, device: int, pt_id: int) -> None:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT."""
        self._open_device(device).attach(pt_id)

    def detach(self, device: int) -> None:
        """VFIO_DEVICE_DETACH_IOMMUFD_PT."""
        self._open_device(device).detach()

    def destroy(self, fd: int, number: int) -> None:
        """IOMMU_DESTROY; a vIOMMU's vEVENTQ, which refers to it, goes first."""
        iommufd = self._iommufd(fd)
        queue = self._queues.pop((fd, number), None)
        if queue is not None:
            queue.close()
        try:
            iommufd.destroy(number)
        except BackendError:
            if queue is not None:
                self._queues[fd, number] = EventQueue(iommufd, number)
            raise

    def enable(self, device: int) -> int:
        """VFIO_DEVICE_SET_IRQS of MSI 0; return the address that the kernel programmed."""
        found = self._open_device(device)
        found.enable_msi()
        return found.msi_address()

    def disable(self, device: int) -> None:
        """VFIO_DEVICE_SET_IRQS with no MSI."""
        self._open_device(device).disable_msi()

    def program(self, device: int, address: int) -> None:
        """Write the address in the device's MSI capability."""
        self._devices[device].set_msi_address(address)

    def raise_msi(self, device: int) -> Landing:
        """Let the device send MSI 0."""
        found = self._open_device(device)
        try:
            trigger = trigger_of(found.address)(found)
            arrival = watch(trigger, self._witnesses, list(self._queues.values()), self._log)
        except OSError as error:
            reason = f"{found.address}: {error.strerror}"
            raise BackendError(error.errno or errno.EIO, reason) from error
        if arrival.event is not None:
            return Landing(LandingKind.FAULT, event=arrival.event, guest=not arrival.logged)
        if arrival.interrupt:
            return Landing(LandingKind.ITS)
        if arrival.written is not None:
            page, offset, _data = arrival.written
            return Landing(LandingKind.WITNESS, page + 1, offset)
        return Landing(LandingKind.NOWHERE)

    def shut(self) -> None:
        """Give everything back; the machine is not used any more."""
        try:
            self.reset()
        finally:
            self._log.close()
            self._ram.close()
            self._witnesses.close()
