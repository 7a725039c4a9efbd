"""Measure what arrives from the devices of a running guest, on its host: nothing is changed.

The readers are those of the recorder; each quantity that cannot be read is None, with a reason.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError, UnreadableError
from vmm_msi.iommu.linux import local_pci
from vmm_msi.iommu.linux.msi_table import read_addresses
from vmm_msi.recording.recorder import fault_counts, interrupt_counts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from vmm_msi.explain.log_context import LogContext
    from vmm_msi.types import Iova, PciAddress

INTERRUPTS = Path("/proc/interrupts")
#: Where libvirt's QEMU driver keeps pid files: libvirt ``src/qemu/qemu_process.c``
#: qemuProcessPrepareHost, ``src/qemu/qemu_conf.c`` virQEMUDriverConfigNew.
_PID_FILES = Path("/run/libvirt/qemu")
_PROC = Path("/proc")
#: Field 22 of /proc/PID/stat, counted after the name in parentheses: proc_pid_stat(5).
_START_TIME = 19


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one device.

    :param addresses: the distinct addresses in its enabled MSIs; None if unreadable.
    :param interrupts: the interrupts that the host's kernel counted since the guest set the MSIs
        up; None if unreadable.
    :param vectors: the number of MSIs that the host's kernel counts.
    :param faults: its events in the kernel's log since the guest started; None if unreadable.
    """

    addresses: tuple[Iova, ...] | None = None
    interrupts: int | None = None
    vectors: int = 0
    faults: int | None = None


def read_interrupts(path: Path = INTERRUPTS) -> str:
    """Return the content of /proc/interrupts.

    :raise UnreadableError: when it cannot be read.
    """
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise UnreadableError("this machine", str(path), reason) from failure


def start_time_us(guest: str, pid_files: Path = _PID_FILES, proc: Path = _PROC) -> int:
    """Return when the QEMU of a guest started, in microseconds since boot.

    :raise UnreadableError: when its pid file or its process cannot be read.
    """
    pid_file = pid_files / f"{guest}.pid"
    path = pid_file
    try:
        pid = int(pid_file.read_text(encoding="ascii"))
        path = proc / str(pid) / "stat"
        fields = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        ticks = int(fields[_START_TIME])
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise UnreadableError("this machine", str(path), reason) from failure
    except (ValueError, IndexError) as failure:
        raise UnreadableError("this machine", str(path), "has an unknown form") from failure
    return ticks * 1_000_000 // os.sysconf("SC_CLK_TCK")


def measure(
    addresses: Collection[PciAddress],
    interrupts: str | None,
    log: Iterable[str] | None,
    context: LogContext,
    devices_folder: Path = local_pci.DEVICES,
) -> tuple[dict[PciAddress, Measured], list[str]]:
    """Measure the devices at ``addresses``.

    :param interrupts: the content of /proc/interrupts; None if unreadable.
    :param log: the lines of the host's kernel log since the guest started; None if unreadable.
    :param context: the host and the guest, to find the device of an event.
    :return: what was measured of each device, and why addresses could not be read.
    """
    counts = {} if interrupts is None else interrupt_counts(interrupts)
    faults = {} if log is None else fault_counts(log, context)
    unread = []
    measured = {}
    for address in addresses:
        programmed: tuple[Iova, ...] | None = None
        try:
            programmed = tuple(sorted(set(read_addresses(devices_folder / str(address)).values())))
        except BackendError as failure:
            unread.append(failure.reason)
        of_device = counts.get(address, {})
        measured[address] = Measured(
            programmed,
            None if interrupts is None else sum(of_device.values()),
            len(of_device),
            None if log is None else faults.get(address, 0),
        )
    return measured, unread
