"""The MSI-X table of a device of this machine, the emulated host."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

from vmm_msi.iommu.linux import msi
from vmm_msi.iommu.linux.msi_table import read_addresses, table_of

_DEVICES = Path("/sys/bus/pci/devices")


def locate_table(address: str) -> dict[str, int]:
    """Return where the MSI-X table of a device is: its physical address, and its entries.

    :raise BackendError: when it cannot be read.
    """
    folder = _DEVICES / address
    table = table_of((folder / "config").read_bytes())
    # A line for each BAR: start, end and flags (Linux ``drivers/pci/pci-sysfs.c`` resource_show).
    bars = (folder / "resource").read_text(encoding="ascii").splitlines()
    start = int(bars[table.bar].split()[0], 16)
    return {"address": start + table.offset, "entries": table.entries}


def misdirect(address: str) -> list[str]:
    """Write the address of another page into every MSI that a device may send.

    The other page is in the SW MSI window too, which the guest's stage 1 maps 1:1. Stage 2 does
    not map it, unless it is the slot of another ITS. The kernel does not notice.

    :return: the new addresses.
    :raise BackendError: when its MSI-X table cannot be read.
    """
    folder = _DEVICES / address
    table = table_of((folder / "config").read_bytes())
    page = table.offset & ~(mmap.ALLOCATIONGRANULARITY - 1)
    size = table.offset - page + table.entries * msi.MSIX_ENTRY_BYTES
    moved = {
        number: int(programmed) ^ mmap.PAGESIZE
        for number, programmed in read_addresses(folder).items()
    }
    fd = os.open(folder / f"resource{table.bar}", os.O_RDWR | os.O_CLOEXEC)
    try:
        with mmap.mmap(fd, size, offset=page) as mapped:
            for number, value in moved.items():
                at = table.offset - page + number * msi.MSIX_ENTRY_BYTES
                # One write of 32 bits, as a device requires.
                ctypes.c_uint32.from_buffer(mapped, at).value = value & 0xFFFF_FFFF
    finally:
        os.close(fd)
    return [f"{value:#x}" for value in sorted(set(moved.values()))]
