"""Make an NVMe controller send its first MSI, by an Identify Controller command.

NVM Express base specification 2.0: 3.1.3 registers, 3.5.1 initialisation, 5.17 Identify. Identify
Controller is the only command that is submitted, and it changes nothing on the drive; no I/O queue
is created. Its completion raises vector 0, that of the admin queue.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu.linux import uapi
from vmm_msi.iommu.linux.msi_trigger import DMA_BYTES, DmaPages, Trigger

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_msi.iommu.linux.vfio import VfioDevice

#: Class of an NVM Express controller.
NVME_CLASS = 0x010802

_CAP, _CC, _CSTS, _AQA, _ASQ, _ACQ = 0x00, 0x14, 0x1C, 0x24, 0x28, 0x30
_DOORBELLS = 0x1000
_CC_ENABLE = 1 << 0
#: Entries of 64 and of 16 bytes.
_CC_ENTRY_SIZES = 6 << 16 | 4 << 20
_CSTS_READY = 1 << 0
_CSTS_FATAL = 1 << 1
_ALL_ONES = 0xFFFF_FFFF

_ENTRIES = 16
_SQE_BYTES, _CQE_BYTES = 64, 16
_IDENTIFY = 0x06
_CNS_CONTROLLER = 1

#: How long a command may take, in seconds.
_COMMAND_S = 5.0
_STEP_S = 0.001


class NvmeTrigger(Trigger):
    """One controller, with an admin queue pair and a page for the data of Identify."""

    needs_dma = True

    def __init__(self, device: VfioDevice, dma: DmaPages | None = None) -> None:
        super().__init__(device, dma)
        self._page = 0x1000
        self._stride = 4
        self._ready_s = 1.0
        #: Number of commands submitted since the controller was started.
        self._submitted = 0
        self._started = False

    @property
    def _pages(self) -> DmaPages:
        if self.dma is None:
            raise BackendError(
                errno.EOPNOTSUPP, f"{self.device.address}: an NVMe controller needs memory for DMA"
            )
        return self.dma

    def send(self) -> None:
        """Submit Identify Controller and wait for its completion, which sends the MSI."""
        if not self._started or not self._status() & _CSTS_READY:
            self._start()
        if self._submitted:
            # Not earlier: a controller need not send the MSI of a consumed entry.
            self._ring(1, self._submitted)
        slot, command = self._submitted % _ENTRIES, self._submitted & 0xFFFF
        words = [0] * (_SQE_BYTES // 8)
        words[0] = _IDENTIFY | command << 16
        words[3] = self._pages.iova + 2 * self._page
        words[5] = _CNS_CONTROLLER
        for number, word in enumerate(words):
            self._pages.write64(slot * _SQE_BYTES + 8 * number, word)
        at = self._page + slot * _CQE_BYTES + 8
        phase = 1 - self._submitted // _ENTRIES % 2
        self._submitted += 1
        self._ring(0, self._submitted)
        try:
            self._wait(
                lambda: self._pages.read64(at) >> 48 & 1 == phase,
                _COMMAND_S,
                "the completion of Identify Controller",
            )
        except BackendError:
            self._started = False
            raise
        status = self._pages.read64(at) >> 49
        if status:
            self._started = False
            raise BackendError(
                errno.EIO,
                f"{self.device.address}: NVMe Identify Controller failed with status {status:#x}",
            )

    def _start(self) -> None:
        """Reset the controller and set up its admin queues."""
        low, high = self._read(_CAP), self._read(_CAP + 4)
        self._ready_s = max((low >> 24) * 0.5, 1.0)
        self._stride = 4 << (high & 0xF)
        smallest = high >> 16 & 0xF
        self._page = 0x1000 << smallest
        if low == _ALL_ONES:
            raise BackendError(
                errno.EIO,
                f"{self.device.address}: NVMe CAP reads {low:#x}: its BAR does not answer",
            )
        if 3 * self._page > DMA_BYTES:
            raise BackendError(
                errno.EOPNOTSUPP,
                f"{self.device.address}: its smallest page has {self._page:#x} bytes (NVMe "
                f"CAP.MPSMIN); use a controller with pages of up to {DMA_BYTES // 4:#x}",
            )
        self.stop()
        self._pages.clear()
        iova = self._pages.iova
        self._write(_AQA, (_ENTRIES - 1) << 16 | (_ENTRIES - 1))
        for register, value in ((_ASQ, iova), (_ACQ, iova + self._page)):
            self._write(register, value & 0xFFFF_FFFF)
            self._write(register + 4, value >> 32)
        commands = high >> 5 & 0xFF
        # CAP.CSS: the NVM command set, else all I/O command sets, else admin commands only.
        command_set = 0 if commands & 1 else 6 if commands & 1 << 6 else 7
        settings = _CC_ENTRY_SIZES | smallest << 7 | command_set << 4
        self._write(_CC, settings)
        self._write(_CC, settings | _CC_ENABLE)
        self._wait(lambda: bool(self._status() & _CSTS_READY), self._ready_s, "CSTS.RDY to be 1")
        self._submitted = 0
        self._started = True

    def stop(self) -> None:
        """Disable the controller, which resets its queues."""
        self._started = False
        control = self._read(_CC)
        if control & _CC_ENABLE:
            self._write(_CC, control & ~_CC_ENABLE)
        self._wait(
            lambda: not self._status() & _CSTS_READY,
            self._ready_s,
            "CSTS.RDY to be 0",
            fatal=0,
        )

    def _status(self) -> int:
        return self._read(_CSTS)

    def _ring(self, completion: int, count: int) -> None:
        """Write the tail of the submission queue, or the head of the completion queue."""
        self._write(_DOORBELLS + completion * self._stride, count % _ENTRIES)

    def _read(self, register: int) -> int:
        return self.device.read32(uapi.VFIO_PCI_BAR0_REGION_INDEX, register)

    def _write(self, register: int, value: int) -> None:
        self.device.write32(uapi.VFIO_PCI_BAR0_REGION_INDEX, register, value)

    def _wait(
        self, done: Callable[[], bool], limit_s: float, what: str, fatal: int = _CSTS_FATAL
    ) -> None:
        """Wait for the controller.

        :param fatal: bits of CSTS that report a failure.
        :raise BackendError: ETIMEDOUT when it takes too long, EIO when the controller is gone or
            reports a failure.
        """
        deadline = time.monotonic() + limit_s
        while not done():
            status = self._status()
            if status == _ALL_ONES or status & fatal:
                raise BackendError(
                    errno.EIO,
                    f"{self.device.address}: waiting for {what}: NVMe CSTS reads {status:#x}",
                )
            if time.monotonic() > deadline:
                raise BackendError(
                    errno.ETIMEDOUT,
                    f"{self.device.address}: waiting for {what}: not seen in {limit_s:g} s, NVMe "
                    f"CSTS reads {status:#x}",
                )
            time.sleep(_STEP_S)
