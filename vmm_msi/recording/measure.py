"""Measure what arrives from the devices of a running guest, on its host: nothing is changed.

The readers are those of the recorder; each quantity that cannot be read is None, with a reason.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import BackendError, UnreadableError
from vmm_msi.iommu.linux import local_pci
from vmm_msi.iommu.linux.msi_table import read_addresses
from vmm_msi.recording.recorder import fault_counts, interrupt_counts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from vmm_msi.explain.log_context import LogContext
    from vmm_msi.types import Iova, PciAddress

INTERRUPTS = Path("/proc/interrupts")
_PROC = Path("/proc")
#: Longest command line that is searched.
_COMMAND_LINE = 1 << 20
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


def start_time_us(uuid: str, proc: Path = _PROC) -> int:
    """Return when the QEMU of a guest started, in microseconds on the clock of the kernel's log.

    libvirt starts every QEMU with ``-uuid`` (libvirt ``src/qemu/qemu_command.c``
    qemuBuildCommandLine). The pid file, which ``src/qemu/qemu_process.c`` qemuProcessLaunch has
    written, is not used: its folder is the daemon's own (``src/qemu/qemu_conf.c``
    virQEMUDriverConfigNew: ``/run/libvirt/qemu``, of a session
    ``$XDG_RUNTIME_DIR/libvirt/qemu/run``, of an embedded driver ``run/qemu`` below its root), its
    name is the guest's as escaped for XML (``src/util/virpidfile.c`` virPidFileBuildPath), and the
    PID is that of the daemon's PID namespace.

    :raise UnreadableError: when not exactly one such process can be read.
    """
    times = set()
    for folder in _processes(proc):
        # A process that exits meanwhile is not the guest's.
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            with (folder / "cmdline").open("rb") as file:
                words = file.read(_COMMAND_LINE).split(b"\0")
            if (b"-uuid", uuid.encode()) in pairwise(words):
                times.add(_start_time(folder / "stat"))
    if len(times) != 1:
        why = "more than one QEMU has" if times else "no QEMU that can be read has"
        raise UnreadableError("this machine", str(proc), f"{why} -uuid {uuid}")
    return log_time_us(times.pop() * 1_000_000 // os.sysconf("SC_CLK_TCK"), read_clocks())


class Clocks(NamedTuple):
    """The kernel's clocks at one moment, in nanoseconds."""

    boottime: int
    monotonic: int
    monotonic_raw: int


def read_clocks() -> Clocks:
    """Return the clocks of this machine now."""
    clocks = time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC, time.CLOCK_MONOTONIC_RAW
    return Clocks(*map(time.clock_gettime_ns, clocks))


def log_time_us(since_boot_us: int, now: Clocks) -> int:
    """Return a time since boot on the clock of the kernel's log, both in microseconds.

    A process has its start in CLOCK_BOOTTIME (Linux ``fs/proc/array.c`` do_task_stat), which NTP
    steers and which counts suspended time. The log has the time of a clock that does neither
    (``kernel/printk/printk.c`` vprintk_store: local_clock), like CLOCK_MONOTONIC_RAW. At 50 ppm
    the two drift apart by 4 s a day.
    """
    awake_us = since_boot_us - (now.boottime - now.monotonic) // 1000
    return max(0, awake_us * now.monotonic_raw // now.monotonic)


def _processes(proc: Path) -> list[Path]:
    try:
        return [folder for folder in proc.iterdir() if folder.name.isdecimal()]
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise UnreadableError("this machine", str(proc), reason) from failure


def _start_time(stat: Path) -> int:
    """Return the start time in /proc/PID/stat, in clock ticks since boot."""
    try:
        fields = stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return int(fields[_START_TIME])
    except (ValueError, IndexError) as failure:
        raise UnreadableError("this machine", str(stat), "has an unknown form") from failure


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
