"""Memory of this process for guest RAM and for witness pages.

It requests large pages. QEMU's SMMUv3 translates only the start address of a stage 1 table
(``hw/arm/smmu-common.c`` translate_table_addr_ipa), so it reads a table larger than a page of
stage 2 correctly only if the table's memory is contiguous.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap


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
