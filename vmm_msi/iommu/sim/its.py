"""Simulated physical GICv3 ITSes: device table and event translation, and the LPIs they share.

Sources: Arm GICv3 architecture specification (IHI 0069) chapter 5; Linux
``drivers/irqchip/irq-gic-v3-its.c`` its_create_device, its_lpi_alloc.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError

if TYPE_CHECKING:
    from vmm_msi.types import DeviceId, Its

FIRST_LPI = 8192


class LpiSpace:
    """The LPI numbers of a host, allocated in blocks, first fit.

    Linux limits itself to 16 ID bits (ITS_MAX_LPI_NRBITS); the simulator has the 24 that the
    architecture allows (GICD_TYPER.IDbits), since no strategy differs in it.
    """

    def __init__(self, id_bits: int = 24) -> None:
        self._end = 1 << id_bits
        self._next = FIRST_LPI
        self._free: dict[int, list[int]] = {}

    def alloc(self, count: int) -> int:
        """Return the first of ``count`` consecutive LPIs.

        :raise BackendError: ENOSPC when too few are left.
        """
        reusable = self._free.get(count)
        if reusable:
            return reusable.pop()
        if self._next + count > self._end:
            raise BackendError(errno.ENOSPC, f"its_lpi_alloc: fewer than {count} LPIs are left")
        base = self._next
        self._next += count
        return base

    def free(self, base: int, count: int) -> None:
        """Free a block."""
        self._free.setdefault(count, []).append(base)


@dataclass(frozen=True, slots=True)
class _Events:
    lpi_base: int
    count: int


class SimIts:
    """One ITS."""

    def __init__(self, its: Its, lpis: LpiSpace) -> None:
        self.its = its
        self._lpis = lpis
        self._devices: dict[DeviceId, _Events] = {}

    def map_device(self, device_id: DeviceId, vectors: int) -> None:
        """MAPD and MAPTI for EventIDs 0 to ``vectors - 1``.

        :raise BackendError: ENOSPC when LPIs run out, EBUSY when the DeviceID is mapped.
        """
        if device_id in self._devices:
            raise BackendError(errno.EBUSY, f"ITS {self.its.id}: DeviceID {device_id} is mapped")
        self._devices[device_id] = _Events(self._lpis.alloc(vectors), vectors)

    def unmap_device(self, device_id: DeviceId) -> None:
        """Discard the events and MAPD with V=0."""
        events = self._devices.pop(device_id)
        self._lpis.free(events.lpi_base, events.count)

    def first_lpi(self, device_id: DeviceId, vectors: int) -> int | None:
        """Return the LPI of EventID 0, or None when one of the ``vectors`` EventIDs is unknown.

        EventIDs of one device translate to consecutive LPIs.
        """
        events = self._devices.get(device_id)
        if events is None or vectors > events.count:
            return None
        return events.lpi_base

    def mapped(self) -> frozenset[DeviceId]:
        """Return the DeviceIDs that are mapped."""
        return frozenset(self._devices)
