"""The running kernel as a machine for call sequences."""

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
from vmm_msi.iommu.fd_calls import FdCalls
from vmm_msi.iommu.linux.event_queue import QueuedIommufd
from vmm_msi.iommu.linux.guest_ram import Memory
from vmm_msi.iommu.linux.kmsg import KernelLog
from vmm_msi.iommu.linux.raise_msi import Witnesses, trigger_of, watch
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

# STE.STRW, which STRTAB_STE_1_NESTING_ALLOWED lacks.
_STE_1_NOT_ALLOWED = 1 << 30


class LinuxMachine(FdCalls):
    """The machine that this process runs on: :class:`vmm_msi.iommu.call_sequence.Machine`.

    :param addresses: its test devices, in the order of their numbers.
    """

    def __init__(self, addresses: Sequence[PciAddress]) -> None:
        self._log = KernelLog()
        try:
            self._devices = [VfioDevice(address) for address in addresses]
        except BaseException:
            self._log.close()
            raise
        self._fds: list[QueuedIommufd] = []
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
        for fd in self._fds:
            fd.close_queues()
            fd.close()
        self._fds.clear()
        self._tables.clear()
        self._arena.clear()

    def close(self, fd: int) -> None:
        """Close a file descriptor of /dev/iommu."""
        self._fd(fd).close()

    def open(self) -> int:
        """Open /dev/iommu."""
        self._fds.append(QueuedIommufd())
        return len(self._fds) - 1

    def _fd(self, fd: int) -> QueuedIommufd:
        if fd not in range(len(self._fds)) or self._fds[fd].fd < 0:
            raise BackendError(errno.EBADF, f"file descriptor {fd}: is not open")
        return self._fds[fd]

    def _open_device(self, number: int) -> VfioDevice:
        device = self._devices[number]
        if not device.is_open:
            raise BackendError(errno.EBADF, f"{device.address}: its character device is not open")
        return device

    def bind(self, fd: int, device: int) -> int:
        """Open the character device if it is not open, and bind it."""
        iommufd, vfio = self._fd(fd), self._devices[device]
        if not vfio.is_open:
            vfio.open()
        return vfio.bind(iommufd)

    def unbind(self, device: int) -> None:
        """Close the character device."""
        self._open_device(device).close()

    def ioas_map(self, fd: int, ioas: int, iova: int, size: int, page: int) -> None:
        """IOMMU_IOAS_MAP."""
        ram = self._ram.address
        address = ram if page == RAM_PAGE else self._witnesses.address(page - 1)
        self._fd(fd).ioas_map(ioas, iova, size, address)

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
        return self._fd(fd).hwpt_alloc_nested(dev_id, viommu, ste)

    def attach(self, device: int, pt_id: int) -> None:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT."""
        self._open_device(device).attach(pt_id)

    def detach(self, device: int) -> None:
        """VFIO_DEVICE_DETACH_IOMMUFD_PT."""
        self._open_device(device).detach()

    def enable(self, device: int) -> int:
        """VFIO_DEVICE_SET_IRQS of MSI 0; return the address that the kernel programmed."""
        vfio = self._open_device(device)
        vfio.enable_msi()
        return vfio.msi_address()

    def disable(self, device: int) -> None:
        """VFIO_DEVICE_SET_IRQS with no MSI."""
        self._open_device(device).disable_msi()

    def program(self, device: int, address: int) -> None:
        """Write the address in the device's MSI capability."""
        self._devices[device].set_msi_address(address)

    def msi_address(self, device: int) -> int:
        """Return the address in the device's MSI capability while MSIs are enabled in it."""
        vfio = self._open_device(device)
        return vfio.msi_address() if vfio.sends_msi else 0

    def raise_msi(self, device: int) -> Landing:
        """Make the device send MSI 0."""
        vfio = self._open_device(device)
        queues = [queue for fd in self._fds for queue in fd.queues.values()]
        try:
            trigger = trigger_of(vfio.address)(vfio)
            arrival = watch(trigger, self._witnesses, queues, self._log)
        except OSError as error:
            reason = f"{vfio.address}: {error.strerror}"
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
        """Release everything; the machine cannot be used again."""
        try:
            self.reset()
        finally:
            self._log.close()
            self._ram.close()
            self._witnesses.close()
