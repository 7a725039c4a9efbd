"""The addresses that the kernel programmed into a device's MSIs, read without changing anything.

The MSI capability is in the configuration space, the MSI-X table in a BAR: PCI Express base
specification 7.7.1 and 7.7.2. Both are read through sysfs; a kernel with CONFIG_IO_STRICT_DEVMEM
does not map a BAR that a driver has (Linux ``drivers/pci/pci-sysfs.c`` pci_mmap_resource).
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import BackendError
from vmm_msi.iommu.linux import msi
from vmm_msi.types import Iova

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_COMMAND = 4
_COMMAND_MEMORY = 1 << 1
_MSI_CONTROL = 2
_MSI_ENABLED_SHIFT = 4
_MSIX_SIZE = 0x7FF
_ENTRY_WORDS = msi.MSIX_ENTRY_BYTES // 4


def read_addresses(folder: Path) -> dict[int, Iova]:
    """Return the address of every MSI that a device may send now, by number.

    :param folder: of the device, in sysfs.
    :raise BackendError: when they cannot be read; EOPNOTSUPP for a device in a low-power state or
        with memory access off, since reading it could crash the machine.
    """
    name = folder.name
    with msi.backend_errors(f"{name}: reading its configuration space", "run as root"):
        config = (folder / "config").read_bytes()[: msi.CONFIG_BYTES]
    if len(config) < msi.CONFIG_BYTES:
        raise BackendError(
            errno.EACCES, f"{name}: its configuration space can be read only in part; run as root"
        )
    offsets = msi.capabilities(config)
    at = offsets.get(msi.PCI_CAP_ID_MSI)
    if at is not None and _number(config, at + _MSI_CONTROL, 2) & msi.MSI_ENABLE:
        return of_capability(config, at)
    at = offsets.get(msi.PCI_CAP_ID_MSIX)
    value, mask = msi.MSIX_ENABLE_UNMASKED
    if at is None or _number(config, at + _MSI_CONTROL, 2) & mask != value:
        return {}
    _check_awake(folder, config)
    table = table_of(config)
    words = table.entries * _ENTRY_WORDS
    return of_table(_words(folder / f"resource{table.bar}", table.offset, words))


class MsixTable(NamedTuple):
    """The place of an MSI-X table.

    :param bar: the number of the BAR that it is in.
    :param offset: its offset in the BAR, in bytes.
    :param entries: the number of its entries.
    """

    bar: int
    offset: int
    entries: int


def table_of(config: bytes) -> MsixTable:
    """Return the MSI-X table that a configuration space names.

    :raise BackendError: for a device without MSI-X.
    """
    at = msi.capabilities(config).get(msi.PCI_CAP_ID_MSIX)
    if at is None:
        raise BackendError(errno.EOPNOTSUPP, "the device has no MSI-X capability")
    place = _number(config, at + msi.MSIX_TABLE, 4)
    entries = (_number(config, at + _MSI_CONTROL, 2) & _MSIX_SIZE) + 1
    return MsixTable(place & msi.MSIX_BAR, place & ~msi.MSIX_BAR, entries)


def of_capability(config: bytes, at: int) -> dict[int, Iova]:
    """Return the address in the MSI capability at an offset, for each enabled MSI."""
    control = _number(config, at + _MSI_CONTROL, 2)
    address = _number(config, at + 4, 8 if control & msi.MSI_64BIT else 4)
    return dict.fromkeys(range(1 << (control >> _MSI_ENABLED_SHIFT & 7)), Iova(address))


def of_table(words: Sequence[int]) -> dict[int, Iova]:
    """Return the addresses in the unmasked entries of an MSI-X table, by entry.

    :param words: of 32 bits: address, its upper half, data and control of each entry.
    """
    return {
        at // _ENTRY_WORDS: Iova(words[at] | words[at + 1] << 32)
        for at in range(0, len(words), _ENTRY_WORDS)
        if not words[at + 3] & msi.ENTRY_MASKED
    }


def _number(config: bytes, at: int, size: int) -> int:
    return int.from_bytes(config[at : at + size], "little")


def _check_awake(folder: Path, config: bytes) -> None:
    state = folder / "power_state"
    with msi.backend_errors(f"{folder.name}: reading {state}"):
        power = state.read_text(encoding="ascii").strip()
    # A virtual function has no such bit: PCI Express base specification 9.3.4.1.3.
    off = not config[_COMMAND] & _COMMAND_MEMORY and not (folder / "physfn").is_symlink()
    if power != "D0" or off:
        why = "its memory access is off" if power == "D0" else f"it is in power state {power}"
        raise BackendError(
            errno.EOPNOTSUPP, f"{folder.name}: its MSI-X table is not read while {why}"
        )


def _words(resource: Path, offset: int, count: int) -> list[int]:
    """Return words of a BAR, each by one read of 32 bits."""
    begin = offset & ~(mmap.ALLOCATIONGRANULARITY - 1)
    end = offset + 4 * count
    action = f"{resource.parent.name}: mapping its MSI-X table"
    advice = (
        "run as root on a kernel without CONFIG_IO_STRICT_DEVMEM or with iomem=relaxed on its "
        "command line"
    )
    with msi.backend_errors(action, advice):
        fd = os.open(resource, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if end > os.fstat(fd).st_size:
                raise OSError(errno.ENXIO, f"it lies beyond the end of {resource.name}")
            mapped = mmap.mmap(fd, end - begin, mmap.MAP_SHARED, mmap.PROT_READ, offset=begin)
        finally:
            os.close(fd)
    with mapped, memoryview(mapped) as view, view[offset - begin : end - begin] as table:
        words = table.cast("I")
        try:
            return [words[number] for number in range(count)]
        finally:
            words.release()
