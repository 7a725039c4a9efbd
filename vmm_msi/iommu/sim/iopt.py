"""The I/O page table of an IOAS: its mappings, its reservations, the tables filled from it.

Linux ``drivers/iommu/iommufd/io_pagetable.c``. Each method names the function whose checks it
makes, in the same order.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import BackendError
from vmm_msi.iommu import rules

if TYPE_CHECKING:
    from collections.abc import Hashable

    from vmm_msi.iommu.sim.page_table import PageTable

_END = 1 << 64
#: Virtual address of user space's memory: any value far from both ends.
_USER_VA = 0xFFFF_0000_0000


class Area(NamedTuple):
    """The size and the output address of one mapping call."""

    size: int
    output: int


@dataclass(frozen=True, slots=True)
class FilledTable:
    """A table that is filled from an IOAS.

    :param bits: width of its input addresses; higher addresses cannot be mapped.
    """

    table: PageTable
    bits: int


class IoPageTable:
    """``struct io_pagetable``.

    :param page_size: PAGE_SIZE in bytes.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        #: Mappings, by IOVA.
        self.areas: dict[int, Area] = {}
        #: First and last address of each reservation, by owner; most owners have the same ones.
        self._reserved: dict[Hashable, list[tuple[int, int]]] = {}
        self._ranges: Counter[tuple[int, int]] = Counter()
        self._tables: list[FilledTable] = []

    @property
    def alignment(self) -> int:
        """Alignment of IOVAs and sizes: 1 as long as no table is filled.

        ``iopt_calculate_iova_alignment``.
        """
        return self.page_size if self._tables else 1

    def overlaps(self, base: int, size: int) -> bool:
        """Return whether anything is mapped in ``size`` bytes from ``base``."""
        if size <= self.page_size and base in self.areas:
            return True
        return any(
            start < base + size and base < start + area.size for start, area in self.areas.items()
        )

    def _reserved_in(self, base: int, size: int) -> tuple[int, int] | None:
        """Return first and last address of a reservation in ``size`` bytes from ``base``."""
        return next(((s, e) for s, e in self._ranges if s < base + size and base <= e), None)

    def map(self, iova: int, size: int, output: int) -> None:
        """``iopt_map_user_pages`` with a fixed IOVA.

        :raise BackendError: EOVERFLOW past the end of either address space; EINVAL for no bytes,
            for an unaligned address or size and for a reserved region; EEXIST when something is
            mapped there, in the IOAS or, as the kernel's own MSI pages are, in a table alone.
        """
        action = f"IOMMU_IOAS_MAP of {iova:#x}"
        if _USER_VA + size >= _END:
            raise rules.MEMORY_END.refusal(
                errno.EOVERFLOW, f"{action}: {size:#x} bytes of memory end past 2^64"
            )
        mask = self.alignment - 1
        if not size or (size | iova) & mask:
            rule = rules.SIZE_ALIGNED if not size or size & mask else rules.IOVA_ALIGNED
            raise rule.refusal(
                errno.EINVAL, f"{action}: {size:#x} bytes are not a multiple of {self.alignment:#x}"
            )
        if iova + size > _END:
            raise rules.IOVA_END.refusal(
                errno.EOVERFLOW, f"{action}: {size:#x} bytes end past 2^64"
            )
        reserved = self._reserved_in(iova, size)
        if reserved is not None:
            raise rules.IOVA_RESERVED.refusal(
                errno.EINVAL,
                f"{action}: {reserved[0]:#x}-{reserved[1]:#x} is reserved by the attached devices "
                "or lies past the end of a stage 2; use an address outside of it",
            )
        if self.overlaps(iova, size):
            raise rules.IOVA_MAPPED.refusal(
                errno.EEXIST, f"{action}: something is mapped there already"
            )
        if output & mask:
            raise rules.MEMORY_ALIGNED.refusal(errno.EINVAL, f"{action}: the memory is not aligned")
        for number, filled in enumerate(self._tables):
            try:
                filled.table.map(iova, output, size)
            except BackendError:
                for earlier in self._tables[:number]:
                    earlier.table.unmap(iova)
                raise
        self.areas[iova] = Area(size, output)

    def unmap(self, iova: int, size: int) -> int:
        """``iopt_unmap_iova``; return the number of bytes unmapped.

        If the range covers an area in part, the areas before it are unmapped and stay so.

        :raise BackendError: EINVAL for no bytes; EOVERFLOW past the end; ENOENT when nothing is
            mapped there or an area is covered in part.
        """
        action = f"IOMMU_IOAS_UNMAP of {iova:#x}"
        if not size:
            raise rules.UNMAP_RANGE.refusal(errno.EINVAL, f"{action}: no bytes")
        if iova + size > _END:
            raise rules.UNMAP_RANGE.refusal(
                errno.EOVERFLOW, f"{action}: {size:#x} bytes end past 2^64"
            )
        unmapped = 0
        for start in self._touched(iova, size):
            area = self.areas[start]
            if start < iova or start + area.size > iova + size:
                raise rules.UNMAP_WHOLE.refusal(errno.ENOENT, f"{action}: covers a mapping in part")
            self._drop(start)
            unmapped += area.size
        if not unmapped:
            raise rules.UNMAPS_NOTHING.refusal(errno.ENOENT, f"{action}: nothing is mapped")
        return unmapped

    def unmap_all(self) -> int:
        """``iopt_unmap_all``; return the number of bytes unmapped, which may be 0."""
        unmapped = sum(area.size for area in self.areas.values())
        for start in list(self.areas):
            self._drop(start)
        return unmapped

    def _touched(self, iova: int, size: int) -> list[int]:
        exact = self.areas.get(iova)
        if exact is not None and exact.size == size:
            return [iova]
        return sorted(
            start
            for start, area in self.areas.items()
            if start < iova + size and iova < start + area.size
        )

    def _drop(self, start: int) -> None:
        del self.areas[start]
        for filled in self._tables:
            filled.table.unmap(start)

    def reserve(self, start: int, last: int, owner: Hashable) -> None:
        """``iopt_reserve_iova``.

        :raise BackendError: EADDRINUSE when something is mapped there.
        """
        if self.overlaps(start, last - start + 1):
            raise rules.RESERVED_FREE.refusal(
                errno.EADDRINUSE,
                f"reserving {start:#x}-{last:#x}: reserved region is mapped already in the guest's "
                "address space",
            )
        self._reserved.setdefault(owner, []).append((start, last))
        self._ranges[start, last] += 1

    def release(self, owner: Hashable) -> None:
        """``iopt_remove_reserved_iova``: all reservations of ``owner``."""
        for reservation in self._reserved.pop(owner, ()):
            self._ranges[reservation] -= 1
            if not self._ranges[reservation]:
                del self._ranges[reservation]

    def fill(self, filled: FilledTable) -> None:
        """``iopt_table_add_domain``: fill a table and keep it filled.

        :raise BackendError: EADDRINUSE when a mapping is not aligned to pages or lies past the end
            of the table; EEXIST when the table has a mapping where the IOAS has one.
        """
        mask = self.page_size - 1
        if any((start | area.size | area.output) & mask for start, area in self.areas.items()):
            raise rules.FILL_ALIGNED.refusal(
                errno.EADDRINUSE, "a mapping is not aligned to the page size"
            )
        if filled.bits < 64:
            self.reserve(1 << filled.bits, _END - 1, filled)
        try:
            for start, area in self.areas.items():
                filled.table.map(start, area.output, area.size)
        except BackendError:
            self.release(filled)
            raise
        self._tables.append(filled)

    def leave(self, filled: FilledTable) -> None:
        """``iopt_table_remove_domain``: stop filling a table."""
        self._tables.remove(filled)
        self.release(filled)
