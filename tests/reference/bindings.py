"""The registered bindings of "SMMUv3 Nested Stage Setup", v1 to v15.

Written from drivers/iommu/dma-iommu.c of the author's tree (eauger/linux at 00ac2250b94a: v4 to
v6) and of the postings v7 (20190408), v8 (20190526161004.25232-18), v10
(20200320160932.27222-10), v13 (20201118112151.25412-10) and v15 (20210411111228.14386-9). v1 to v3
are inferred from their commit messages.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reference.machine import RefusalError

if TYPE_CHECKING:
    from reference.machine import Stage2

#: Revisions whose entries belong to a device.
WITH_HANDLE = (3, 4)
#: Revisions in which all devices of an IOMMU domain have one MSI domain.
ONE_MSI_DOMAIN = (7, 8, 15)


@dataclass(eq=False)
class Entry:
    """One binding; ``phys`` is None as long as nothing is mapped for it."""

    device: str | None
    giova: int
    gpa: int
    size: int
    phys: int | None = None


@dataclass(eq=False)
class Bindings:
    """The bindings of one IOMMU domain.

    :param revision: 1, 2, 3, 4 (to 6), 7, 8 (to 14) or 15.
    """

    revision: int
    stage2: Stage2
    entries: list[Entry] = field(default_factory=list)

    def _key(self, device: str) -> str | None:
        return device if self.revision in WITH_HANDLE else None

    def bind(self, device: str, giova: int, gpa: int, size: int) -> None:
        """iommu_dma_bind_guest_msi: nothing is mapped yet, and a duplicate changes nothing."""
        if self.revision >= 15 and size > self.stage2.machine.page:
            raise RefusalError(errno.EINVAL)
        key, giova, gpa = self._key(device), giova & -size, gpa & -size
        if all((e.device, e.giova) != (key, giova) for e in self.entries):
            self.entries.insert(0, Entry(key, giova, gpa, size))

    def unbind(self, device: str, giova: int) -> None:
        """iommu_dma_unbind_guest_msi: v4 to v7 free every match, later ones the first.

        v1 to v3 have no such call; that of guest bindings on a nest parent frees the newest match.
        """
        key = self._key(device)
        matches = [e for e in self.entries if (e.device, e.giova) == (key, giova & -e.size)]
        for entry in matches if self.revision in (4, 7) else matches[:1]:
            if entry.phys is not None:
                self.stage2.unmap(entry.gpa)
            self.entries.remove(entry)

    def prepare(self, device: str, hdb: int) -> int:
        """iommu_dma_get_msi_page: reuse, else the first free entry, which is the newest.

        A free entry that cannot be mapped stays free; the next one is not tried.
        """
        key, page = self._key(device), self.stage2.machine.page
        phys = hdb & -page
        own = [e for e in self.entries if e.device == key]
        entry = next((e for e in own if e.phys == phys), None)
        if entry is None:
            entry = next((e for e in own if e.phys is None), None)
            if entry is None:
                raise RefusalError(errno.ENOMEM)
            self.stage2.map(entry.gpa, phys)
            entry.phys = phys
        return entry.giova + hdb % page
