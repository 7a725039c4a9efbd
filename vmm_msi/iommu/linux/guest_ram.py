"""Memory of this process for guest RAM and for witness pages.

It requests large pages. QEMU's SMMUv3 translates only the start address of a stage 1 table
(``hw/arm/smmu-common.c`` translate_table_addr_ipa), so it reads a table larger than a page of
stage 2 correctly only if the table's memory is contiguous.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from typing import TYPE_CHECKING

from vmm_msi.iommu.vmm import RamMapping
from vmm_msi.types import SW_MSI_WINDOW

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_msi.types import MemoryRange


class Memory:
    """Anonymous memory with a known virtual address, for IOMMU_IOAS_MAP.

    :param size: bytes, a multiple of the page size.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # EINVAL: a kernel without large pages.
        with contextlib.suppress(OSError):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = (ctypes.c_char * size).from_buffer(self._map)
        #: Virtual address of its first byte.
        self.address = ctypes.addressof(self._bytes)

    def read(self, offset: int) -> int:
        """Return a little-endian word of 64 bits."""
        return int.from_bytes(self._map[offset : offset + 8], "little")

    def write(self, offset: int, value: int) -> None:
        """Write a little-endian word of 64 bits."""
        self._map[offset : offset + 8] = value.to_bytes(8, "little")

    def content(self) -> bytes:
        """Return a copy of the whole memory."""
        return self._map[:]

    def fill(self, byte: bytes = b"\0", size: int | None = None) -> None:
        """Fill the first ``size`` bytes; all with None."""
        ctypes.memset(self.address, byte[0], self.size if size is None else size)

    def close(self) -> None:
        """Free the memory; no IOAS may have it mapped."""
        del self._bytes
        self._map.close()


def ram_mappings(
    ranges: Iterable[MemoryRange], start: Memory, page: Memory
) -> Iterator[RamMapping]:
    """Yield the mappings of guest RAM, of which little exists.

    :param start: for the start of the first range.
    :param page: for RAM in the MSI window.
    """
    for number, ram in enumerate(ranges):
        size = min(ram.size, start.size) if number == 0 else 0
        if size:
            yield RamMapping(ram.base, size, start.address)
        first = max(ram.base, SW_MSI_WINDOW.base)
        left_out = ram.base + size <= first < ram.base + ram.size
        if left_out and SW_MSI_WINDOW.overlaps(first, 1):
            yield RamMapping(first, page.size, page.address)
