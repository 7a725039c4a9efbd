"""One stage of translation: a table with a granule and permissions."""

from __future__ import annotations

import errno
from bisect import bisect_right
from dataclasses import dataclass
from enum import Flag
from typing import TYPE_CHECKING

from vmm_msi.iommu import rules

if TYPE_CHECKING:
    from vmm_msi.types import Granule


class Access(Flag):
    """The accesses that a mapping permits."""

    NONE = 0
    READ = 1
    WRITE = 2
    READ_WRITE = 3


@dataclass(frozen=True, slots=True)
class Leaf:
    """The output address and the permissions of one granule or of one range."""

    output: int
    access: Access


@dataclass(frozen=True, slots=True)
class _Range:
    base: int
    last: int
    output: int
    access: Access


class PageTable:
    """A translation table with 48 input bits: single granules, and a few large ranges for RAM.

    :param granule: page size; addresses and sizes are multiples of it.
    :param output_bits: size of the output address space; larger outputs are F_ADDR_SIZE.
    """

    INPUT_BITS = 48

    def __init__(self, granule: Granule, output_bits: int = 48) -> None:
        self.granule = granule
        self.output_bits = output_bits
        self._pages: dict[int, Leaf] = {}
        self._ranges: list[_Range] = []
        self._mask = granule - 1

    def map(self, base: int, output: int, size: int, access: Access = Access.READ_WRITE) -> None:
        """Map ``size`` bytes from ``base`` to ``output``; all or nothing.

        Follows Linux ``drivers/iommu/iommu.c`` iommu_map and
        ``drivers/iommu/io-pgtable-arm.c`` arm_lpae_map_pages.

        :raise BackendError: EINVAL when an address or the size is not a multiple of the granule
            or the mapping permits no access, ERANGE outside of an address space, EEXIST when
            something is mapped there.
        """
        if (base | output | size) & self._mask or size <= 0:
            raise rules.MAP_ALIGNED.refusal(
                errno.EINVAL,
                f"iommu_map({base:#x} -> {output:#x}, {size:#x} bytes): not aligned to the "
                f"{self.granule} granule",
            )
        if access is Access.NONE:
            raise rules.MAP_ACCESS.refusal(
                errno.EINVAL, f"iommu_map({base:#x}): no access is permitted"
            )
        if base + size > 1 << self.INPUT_BITS or output + size > 1 << self.output_bits:
            raise rules.MAP_RANGE.refusal(
                errno.ERANGE, f"iommu_map({base:#x} -> {output:#x}): out of range"
            )
        if self.overlaps(base, size):
            raise rules.MAP_ONCE.refusal(
                errno.EEXIST, f"iommu_map({base:#x} -> {output:#x}): mapped already"
            )
        if size == self.granule:
            self._pages[base] = Leaf(output, access)
        else:
            self._ranges.append(_Range(base, base + size - 1, output, access))
            self._ranges.sort(key=lambda r: r.base)

    def unmap(self, base: int) -> bool:
        """Unmap the mapping of one call at ``base``; return whether one existed."""
        if self._pages.pop(base, None) is not None:
            return True
        kept = [r for r in self._ranges if r.base != base]
        existed = len(kept) != len(self._ranges)
        self._ranges = kept
        return existed

    def overlaps(self, base: int, size: int) -> bool:
        """Return whether anything is mapped in ``size`` bytes from ``base``."""
        if any(r.base < base + size and base <= r.last for r in self._ranges):
            return True
        if size == self.granule:
            return base in self._pages
        return any(base <= page < base + size for page in self._pages)

    def lookup(self, address: int) -> Leaf | None:
        """Return the leaf for ``address``, its output advanced by the offset; None if unmapped."""
        leaf = self._pages.get(address & ~self._mask)
        if leaf is not None:
            return Leaf(leaf.output | (address & self._mask), leaf.access)
        at = bisect_right(self._ranges, address, key=lambda r: r.base) - 1
        if at >= 0 and address <= self._ranges[at].last:
            mapped = self._ranges[at]
            return Leaf(mapped.output + address - mapped.base, mapped.access)
        return None

    def pages(self) -> frozenset[tuple[int, int]]:
        """Return (input, output) of each mapped granule, without the ranges."""
        return frozenset((base, leaf.output) for base, leaf in self._pages.items())

    def __len__(self) -> int:
        return len(self._pages)
