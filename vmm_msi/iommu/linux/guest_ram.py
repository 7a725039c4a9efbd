"""Memory of this process that stands for guest RAM and, page by page, for doorbells.

It is asked to be in large pages. QEMU's SMMUv3 translates the address of a stage 1 table by its
start alone (``hw/arm/smmu-common.c`` translate_table_addr_ipa), so a table that is larger than a
page of stage 2 is read right only where it lies in one piece.
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
        """Return a copy of all of it."""
        return self._map[:]

    def fill(self, byte: bytes = b"\0", size: int | None = None) -> None:
        """Fill the first ``size`` bytes, all where it is None."""
        ctypes.memset(self.address, byte[0], self.size if size is None else size)

    def close(self) -> None:
        """Give it back; nothing may have it mapped any more."""
        del self._bytes
        self._map.close()
