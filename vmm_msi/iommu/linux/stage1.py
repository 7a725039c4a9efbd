"""A guest's stage 1 tables and context descriptors, in its RAM.

Sources: Arm SMMUv3 architecture specification (IHI 0070), 5.2 stream table entry, 5.4 context
descriptor; Arm architecture reference manual (DDI 0487), D8.3 translation table descriptors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.errors import InputError
from vmm_msi.types import Granule

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_msi.iommu.linux.guest_ram import Memory

_INPUT_BITS = 48

# STE: valid, Config = stage 1 translation (stage 2 is the host's); write-back, inner shareable.
STE_VALID = 1
STE_CONFIG_ABORT = 0 << 1
STE_CONFIG_BYPASS = 4 << 1
STE_CONFIG_STAGE1 = 5 << 1
_STE_1_CACHEABLE = 1 << 2 | 1 << 4 | 3 << 6

# Context descriptor, first word: T0SZ, IR0/OR0/SH0 write-back inner shareable, EPD1, V, IPS 44
# bits, AA64, R (faults are recorded), A (aborts), ASET.
_CD_T0SZ = 64 - _INPUT_BITS
_CD_WALK = 1 << 8 | 1 << 10 | 3 << 12
_CD_FLAGS = 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 47
_CD_TG0 = {Granule.K4: 0 << 6, Granule.K64: 1 << 6, Granule.K16: 2 << 6}
_CD_ASID_SHIFT = 48
_CD_BYTES = 64
_MAIR_NORMAL_THEN_DEVICE = 0x04FF

# Leaf: page, EL0 access, inner shareable, access flag, not global. AP[2] makes it read-only.
_TABLE = 3
_LEAF = 3 | 1 << 6 | 3 << 8 | 1 << 10 | 1 << 11
_READ_ONLY = 1 << 7
_OUTPUT = 0x0000_FFFF_FFFF_F000

#: Bytes for context descriptors at the start of the arena.
_DESCRIPTORS = 0x10000


class TableArena:
    """The guest RAM that holds stage 1 tables.

    :param memory: guest RAM; the arena uses all of it.
    :param base: the IPA of its first byte, a multiple of 64 KiB.
    """

    def __init__(self, memory: Memory, base: int) -> None:
        self._memory = memory
        self.base = base
        self._next_descriptor = 0
        self._next = _DESCRIPTORS

    def clear(self) -> None:
        """Clear and free all tables."""
        self._memory.fill(size=self._next)
        self._next_descriptor = 0
        self._next = _DESCRIPTORS

    def descriptor(self) -> int:
        """Allocate a context descriptor and return its IPA."""
        offset = self._next_descriptor
        if offset + _CD_BYTES > _DESCRIPTORS:
            raise InputError(
                f"stage 1 tables: more than {_DESCRIPTORS // _CD_BYTES} do not fit into guest RAM"
            )
        self._next_descriptor += _CD_BYTES
        return self.base + offset

    def table(self, size: int) -> int:
        """Allocate an empty table of ``size`` bytes, aligned to its size, and return its IPA."""
        offset = (self._next + size - 1) & ~(size - 1)
        if offset + size > self._memory.size:
            raise InputError(
                f"stage 1 tables: {self._memory.size:#x} bytes of guest RAM are full; map less"
            )
        self._next = offset + size
        return self.base + offset

    def read(self, ipa: int) -> int:
        """Return the 64-bit word at ``ipa``."""
        return self._memory.read(ipa - self.base)

    def write(self, ipa: int, value: int) -> None:
        """Write the 64-bit word at ``ipa``."""
        self._memory.write(ipa - self.base, value)


class Stage1Table:
    """One stage 1: a context descriptor and a table of 48 input bits.

    :param granule: its page size.
    :param asid: its address space id.
    :param relocate: returns the IPA at which a page is mapped for an IPA of the guest's memory map.
    """

    def __init__(
        self,
        arena: TableArena,
        granule: Granule,
        asid: int,
        relocate: Callable[[int], int] = int,
    ) -> None:
        self._arena = arena
        self._relocate = relocate
        self._mapped: dict[int, tuple[int, int]] = {}
        self.granule = granule
        self.asid = asid
        page_bits = granule.bit_length() - 1
        index_bits = page_bits - 3
        #: (shift, index bits) of each level, the first level first; it may be narrower.
        self._levels: list[tuple[int, int]] = []
        shift = page_bits
        while shift < _INPUT_BITS:
            self._levels.insert(0, (shift, min(index_bits, _INPUT_BITS - shift)))
            shift += index_bits
        self._root = arena.table(granule)
        self._descriptor = arena.descriptor()
        words = (
            _CD_T0SZ | _CD_TG0[granule] | _CD_WALK | _CD_FLAGS | asid << _CD_ASID_SHIFT,
            self._root,
            0,
            _MAIR_NORMAL_THEN_DEVICE,
        )
        for number, word in enumerate(words):
            arena.write(self._descriptor + 8 * number, word)

    @property
    def ste(self) -> tuple[int, int]:
        """The two words of the stream table entry that a guest writes for it."""
        return STE_VALID | STE_CONFIG_STAGE1 | self._descriptor, _STE_1_CACHEABLE

    def _leaf(self, iova: int, *, alloc: bool) -> int | None:
        """Return the IPA of the last-level descriptor for ``iova``.

        :param alloc: allocate missing tables; without, return None for a missing table.
        """
        table = self._root
        for shift, bits in self._levels[:-1]:
            at = table + 8 * (iova >> shift & ((1 << bits) - 1))
            word = self._arena.read(at)
            if not word & 1:
                if not alloc:
                    return None
                word = self._arena.table(self.granule) | _TABLE
                self._arena.write(at, word)
            table = word & _OUTPUT
        shift, bits = self._levels[-1]
        return table + 8 * (iova >> shift & ((1 << bits) - 1))

    def map(self, base: int, output: int, size: int, *, writable: bool = True) -> None:
        """Map ``size`` bytes of IOVAs from ``base`` to IPAs from ``output``, in whole granules."""
        flags = _LEAF if writable else _LEAF | _READ_ONLY
        for distance in range(0, size, self.granule):
            at = self._leaf(base + distance, alloc=True)
            if at is not None:
                self._arena.write(at, self._relocate(output + distance) | flags)
        self._mapped[base] = (size, output)

    def unmap(self, base: int) -> bool:
        """Unmap the mapping of one call at ``base``; return whether one existed.

        The caller invalidates.
        """
        size, _output = self._mapped.pop(base, (0, 0))
        for distance in range(0, size, self.granule):
            at = self._leaf(base + distance, alloc=False)
            if at is not None:
                self._arena.write(at, 0)
        return bool(size)

    def overlaps(self, base: int, size: int) -> bool:
        """Return whether anything is mapped in ``size`` bytes from ``base``."""
        return any(
            start < base + size and base < start + length
            for start, (length, _output) in self._mapped.items()
        )

    def pages(self) -> frozenset[tuple[int, int]]:
        """Return (IOVA, IPA) of each mapping of a single granule."""
        return frozenset(
            (base, output) for base, (size, output) in self._mapped.items() if size == self.granule
        )
