"""Exercise devices of this machine, a guest, and count the interrupts that they signal.

Operations are counted here, interrupts by Linux in ``/proc/interrupts``.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.lab.guest.inventory import interrupts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_DEVICES = Path("/sys/bus/pci/devices")
_BLOCK = 4096
# linux/sockios.h and net/if.h.
_SIOCSIFADDR, _SIOCSIFFLAGS, _SIOCGIFFLAGS = 0x8916, 0x8914, 0x8913
_IFF_UP = 1
#: The network that QEMU's user networking has (QEMU ``docs/system/devices/net.rst``).
_GATEWAY, _OWN = "10.0.2.2", "10.0.2.15"
_DISCARD = 9  # RFC 863
_LEAVE_S = 5.0
_CARRIER_S = 20.0
_FAULT_S = 30.0
#: Counts that are read while a device works, besides those before and after it.
_SAMPLES = 30


class _Sampler:
    """Reads the counts of a device from time to time while it works."""

    def __init__(
        self,
        folder: Path,
        before: Mapping[int, tuple[str, int]],
        count: int,
        report: Callable[[int, int], None],
    ) -> None:
        self._folder = folder
        self._before = before
        self._count = count
        self._every = -(-count // _SAMPLES)
        self._report = report
        self._begun = time.monotonic()
        #: Seconds, operations and interrupts since the begin.
        self.samples: list[tuple[float, int, int]] = [(0.0, 0, 0)]

    def operated(self, done: int) -> None:
        """Note that ``done`` operations were made."""
        if not (done - 1) % 1024:
            self._report(done - 1, self._count)
        if not done % self._every and done < self._count:
            arrived = sum(
                int(vector["after"]) - int(vector["before"])
                for vector in _vectors(self._folder, self._before)
            )
            self.samples.append((time.monotonic() - self._begun, done, arrived))


def exercise(address: str, count: int, report: Callable[[int, int], None]) -> dict[str, object]:
    """Run ``count`` operations on one device, one after the other.

    :param address: the device's address in this machine.
    :return: the operations, their number and duration, each vector's interrupts before and after,
        and counts from time to time meanwhile; ``each`` is true if the device signals one interrupt
        per operation: a network card coalesces several.
    :raise ValueError: when it has neither a drive nor a network interface.
    """
    folder = _DEVICES / address
    before = interrupts()
    sampler = _Sampler(folder, before, count, report)
    begun = time.monotonic()
    drives = sorted(folder.glob("nvme/nvme*/nvme*n*"))
    networks = sorted(folder.glob("net/*"))
    if drives:
        work = f"reads of {drives[0].name}"
        done = _read(Path("/dev", drives[0].name), count, sampler)
    elif networks:
        work = f"packets sent by {networks[0].name}"
        done = _send(networks[0].name, count, sampler)
    else:
        raise ValueError(f"{address} has no drive and no network interface; is its driver there?")
    seconds = time.monotonic() - begun
    return {
        "work": work,
        "done": done,
        "seconds": seconds,
        "vectors": _vectors(folder, before),
        "each": bool(drives),
        "samples": sampler.samples,
    }


def await_fault(address: str, is_there: Callable[[], bool]) -> dict[str, object]:
    """Wait for a fault that a device's driver causes when it starts.

    :param is_there: returns whether the kernel has logged a fault.
    :return: as for :func:`exercise`.
    """
    begun = time.monotonic()
    while not is_there() and time.monotonic() < begun + _FAULT_S:
        time.sleep(0.2)
    seconds = time.monotonic() - begun
    vectors = _vectors(_DEVICES / address, {})
    return {"work": "its driver's start", "done": 1, "seconds": seconds, "vectors": vectors}


def _vectors(folder: Path, before: Mapping[int, tuple[str, int]]) -> list[dict[str, str | int]]:
    """Return the name and both counts of each MSI of a device."""
    after = interrupts()
    irqs = sorted(int(entry.name) for entry in (folder / "msi_irqs").glob("*"))
    return [
        {"name": after[irq][0], "before": before.get(irq, ("", 0))[1], "after": after[irq][1]}
        for irq in irqs
        if irq in after
    ]


def _read(node: Path, count: int, sampler: _Sampler) -> int:
    """Read ``count`` blocks past the page cache, each with its own command."""
    blocks = os.open(node, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    with mmap.mmap(-1, _BLOCK) as buffer:
        try:
            size = os.lseek(blocks, 0, os.SEEK_END) // _BLOCK
            for number in range(count):
                os.preadv(blocks, [buffer], number % size * _BLOCK)
                sampler.operated(number + 1)
        finally:
            os.close(blocks)
    return count


def _send(interface: str, count: int, sampler: _Sampler) -> int:
    """Send ``count`` packets to the network's gateway, each after the previous one has left."""
    sent = Path("/sys/class/net", interface, "statistics/tx_packets")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        _up(udp, interface)
        # All interfaces are on networks with the same addresses.
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        first = int(sent.read_text(encoding="ascii"))
        for number in range(count):
            udp.sendto(b"vmm-msi", (_GATEWAY, _DISCARD))
            deadline = time.monotonic() + _LEAVE_S
            while int(sent.read_text(encoding="ascii")) <= first + number:
                if time.monotonic() > deadline:
                    return number
            sampler.operated(number + 1)
    return count


def _up(udp: socket.socket, interface: str) -> None:
    """Set an interface's address, switch it on and wait for its carrier."""
    name = interface.encode()
    own = struct.pack("16sH2s4s8x", name, socket.AF_INET, b"", socket.inet_aton(_OWN))
    fcntl.ioctl(udp, _SIOCSIFADDR, own)
    switch_on(interface)
    carrier = Path("/sys/class/net", interface, "carrier")
    deadline = time.monotonic() + _CARRIER_S
    while carrier.read_text(encoding="ascii").strip() != "1":
        if time.monotonic() > deadline:
            raise ValueError(f"{interface} has no carrier after {_CARRIER_S:.0f} s")
        time.sleep(0.05)


def switch_on(interface: str) -> None:
    """Switch a network interface on (netdevice(7))."""
    name = interface.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        request = fcntl.ioctl(udp, _SIOCGIFFLAGS, struct.pack("40s", name))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(udp, _SIOCSIFFLAGS, struct.pack("16sH22x", name, flags | _IFF_UP))
