"""The I/O page table of an IOAS: what is mapped, what is reserved, which tables are filled from it.

Linux ``drivers/iommu/iommufd/io_pagetable.c``. Each method names the function whose checks it
makes, in their order.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Hashable

    from vmm_msi.iommu.sim.page_table import PageTable

_END = 1 << 64
#: Where user space has its memory: all that counts is that it is far from both ends.
_USER_VA = 0xFFFF_0000_0000


class Area(NamedTuple):
    """What one call mapped: size and output address."""

    size: int
    output: int


@dataclass(frozen=True, slots=True)
class Filled:
    """A table that is filled from an IOAS.

    :param bits: width of its input addresses; what lies above cannot be mapped.
    """

    table: PageTable
    bits: int


class IoPageTable:
    """``struct io_pagetable``.

    :param page_size: PAGE_SIZE in bytes.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        #: What is mapped, by IOVA.
        self.areas: dict[int, Area] = {}
        #: First and last address of what is reserved, by owner; most have the same.
        self._reserved: dict[Hashable, list[tuple[int, int]]] = {}
        self._ranges: Counter[tuple[int, int]] = Counter()
        self._tables: list[Filled] = []

    @property
    def alignment(self) -> int:
        """What IOVAs and sizes are multiples of: 1 as long as no table is filled.

        ``iopt_calculate_iova_alignment``.
        """
        return self.page_size if self._tables else 1

    def overlaps(self, base: int, size: int) -> bool:
        """Tell whether anything is mapped in ``size`` bytes from ``base``."""
        if size <= self.page_size and base in self.areas:
            return True
        return any(
            start < base + size and base < start + area.size for start, area in self.areas.items()
        )

    def _reserved_in(self, base: int, size: int) -> tuple[int, int] | None:
        """Return first and last address of what is reserved in ``size`` bytes from ``base``."""
        return next(((s, e) for s, e in self._ranges if s < base + size and base <= e), None)

    def map(self, iova: int, size: int, output: int) -> None:
        """``iopt_map_user_pages`` with a fixed IOVA.

        :raise BackendError: EOVERFLOW past the end of either address space; EINVAL for no bytes,
            for what is not aligned and for a reserved region; EEXIST when something is mapped
            there, in the IOAS or, as the kernel's own MSI pages are, in a table alone.
        """
        what = f"IOMMU_IOAS_MAP of {iova:#x}"
        if _USER_VA + size >= _END:
            raise BackendError(errno.EOVERFLOW, f"{what}: {size:#x} bytes of memory end past 2^64")
        mask = self.alignment - 1
        if not size or (size | iova) & mask:
            raise BackendError(
                errno.EINVAL, f"{what}: {size:#x} bytes are not a multiple of {self.alignment:#x}"
            )
        if iova + size > _END:
            raise BackendError(errno.EOVERFLOW, f"{what}: {size:#x} bytes end past 2^64")
        reserved = self._reserved_in(iova, size)
        if reserved is not None:
            raise BackendError(
                errno.EINVAL,
                f"{what}: lies in {reserved[0]:#x}-{reserved[1]:#x}, which is reserved by the "
                "attached devices or past the end of a stage 2; an address outside of it would "
                "work",
            )
        if self.overlaps(iova, size):
            raise BackendError(errno.EEXIST, f"{what}: something is mapped there already")
        if output & mask:
            raise BackendError(errno.EINVAL, f"{what}: the memory is not aligned")
        for number, filled in enumerate(self._tables):
            try:
                filled.table.map(iova, output, size)
            except BackendError:
                for done in self._tables[:number]:
                    done.table.unmap(iova)
                raise
        self.areas[iova] = Area(size, output)

    def unmap(self, iova: int, size: int) -> int:
        """``iopt_unmap_iova``; return the bytes unmapped.

        What lies in front of an area that is covered in part is unmapped and stays so.

        :raise BackendError: EINVAL for no bytes; EOVERFLOW past the end; ENOENT when nothing is
            mapped there or an area is covered in part.
        """
        what = f"IOMMU_IOAS_UNMAP of {iova:#x}"
        if not size:
            raise BackendError(errno.EINVAL, f"{what}: no bytes")
        if iova + size > _END:
            raise BackendError(errno.EOVERFLOW, f"{what}: {size:#x} bytes end past 2^64")
        unmapped = 0
        for start in self._touched(iova, size):
            area = self.areas[start]
            if start < iova or start + area.size > iova + size:
                raise BackendError(errno.ENOENT, f"{what}: covers a part of what one call mapped")
            self._drop(start)
            unmapped += area.size
        if not unmapped:
            raise BackendError(errno.ENOENT, f"{what}: nothing is mapped")
        return unmapped

    def unmap_all(self) -> int:
        """``iopt_unmap_all``; return the bytes unmapped, which may be none."""
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
            raise BackendError(
                errno.EADDRINUSE,
                f"reserving {start:#x}-{last:#x}: reserved region is mapped already in the guest's "
                "address space",
            )
        self._reserved.setdefault(owner, []).append((start, last))
        self._ranges[start, last] += 1

    def release(self, owner: Hashable) -> None:
        """``iopt_remove_reserved_iova``: all that was reserved for ``owner``."""
        for found in self._reserved.pop(owner, ()):
            self._ranges[found] -= 1
            if not self._ranges[found]:
                del self._ranges[found]

    def fill(self, filled: Filled) -> None:
        """``iopt_table_add_domain``: fill a table and keep it filled.

        :raise BackendError: EADDRINUSE when something is mapped that is not aligned to pages or
            lies past the end of the table; EEXIST when the table has something where the IOAS has.
        """
        mask = self.page_size - 1
        if any((start | area.size | area.output) & mask for start, area in self.areas.items()):
            raise BackendError(
                errno.EADDRINUSE, "something is mapped that is not aligned to the page size"
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

    def leave(self, filled: Filled) -> None:
        """``iopt_table_remove_domain``: fill it no more."""
        self._tables.remove(filled)
        self.release(filled)
