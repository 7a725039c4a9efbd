"""Simulated physical ITSes: device tables and event translation, and the LPIs they share.

Sources: Arm GICv3 architecture specification (IHI 0069) chapter 5; Linux 7.2
``drivers/irqchip/irq-gic-v3-its.c``, ``irq-gic-its-msi-parent.c`` and ``irq-gic-v5-its.c``. Errors
are those inside the kernel, unless a method's documentation says otherwise.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field
from itertools import filterfalse, islice
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu import rules

if TYPE_CHECKING:
    from vmm_msi.types import DeviceId, HostDevice, HostTopology, Its, PciAddress

FIRST_LPI = 8192
#: Linux's limit, ITS_MAX_LPI_NRBITS; hardware may have fewer (GICD_TYPER.IDbits, num_LPIs).
LPI_ID_BITS = 16
#: The largest GICV5_IRS_IDR2.ID_BITS; an IRS without two-level tables has 12
#: (``gicv5_irs_init_ist``).
GICV5_LPI_ID_BITS = 24
#: Smallest table of DeviceID 0, which may stand for many devices (``its_pci_msi_prepare``).
_EVENTS_OF_DEVICE_ID_0 = 32


def table_sizes(host: HostTopology) -> dict[PciAddress, int]:
    """Return the number of events that Linux asks an ITS for, for each device.

    Linux ``its_pci_msi_prepare``: as many as the MSI table of the device has, not as are in use,
    and as all functions of its IOMMU group with its DeviceID have, such as those behind one PCIe
    to PCI bridge.
    """
    devices = [device for device in host.devices if device.its_group]
    vectors: Counter[tuple[int, int, int]] = Counter()
    for device in devices:
        vectors[device.iommu_group, device.its, device.device_id] += device.vectors
    sizes = {}
    for device in devices:
        count = vectors[device.iommu_group, device.its, device.device_id]
        size = 1 << (count - 1).bit_length()
        its = host.its_by_id.get(device.its)
        if not device.device_id and its is not None and not its.is_gicv5:
            size = max(size, _EVENTS_OF_DEVICE_ID_0)
        sizes[device.address] = size
    return sizes


class LpiSpace:
    """The LPI numbers of a host, which all its ITSes share.

    A GICv5 takes one for each MSI in use, the simulator for each event of a table there, too.
    """

    def __init__(self, *, gicv5: bool = False) -> None:
        self._end = 1 << (GICV5_LPI_ID_BITS if gicv5 else LPI_ID_BITS)
        self._next = 0 if gicv5 else FIRST_LPI
        self._rule = rules.NO_LPI_V5 if gicv5 else rules.NO_LPI

    def alloc(self, count: int) -> tuple[int, int]:
        """``its_lpi_alloc``: ``count`` consecutive LPIs, or half as many until they fit.

        They belong to the device until its driver is unbound: closing VFIO's device frees none.

        :return: the first one, and their number.
        :raise BackendError: ENOMEM of ``its_msi_prepare`` when none is left.
        """
        while count and self._next + count > self._end:
            count //= 2
        if not count:
            raise self._rule.refusal(errno.ENOMEM, "the host has no LPI left; assign fewer devices")
        base = self._next
        self._next += count
        return base, count


@dataclass(slots=True)
class _Table:
    """The interrupt translation table of a DeviceID: ``struct its_device``.

    :param first: PCI address of the device that it was allocated for.
    :param events: the EventIDs of each device that has MSIs enabled.
    """

    first: PciAddress
    lpi_base: int
    size: int
    events: dict[PciAddress, tuple[int, ...]] = field(default_factory=dict)


class SimIts:
    """One ITS."""

    def __init__(self, its: Its, lpis: LpiSpace) -> None:
        self.its = its
        self._lpis = lpis
        self._tables: dict[DeviceId, _Table] = {}

    def map_device(self, device: HostDevice, size: int) -> int:
        """MAPD with a table for ``size`` events: ``its_msi_prepare``, ``gicv5_its_msi_prepare``.

        A table stays until the driver is unbound. A DeviceID that has one is shared, on a GICv3.

        :return: the number of events that it has.
        :raise BackendError: ENODEV, as the caller of VFIO_DEVICE_SET_IRQS sees every error of
            these functions (``msi_create_device_irq_domain``); inside ENOMEM without LPIs, EBUSY
            for a DeviceID of a GICv5 that another device has.
        """
        table = self._tables.get(device.device_id)
        try:
            if table is None:
                table = _Table(device.address, *self._lpis.alloc(size))
                self._tables[device.device_id] = table
        except BackendError as error:
            raise error.seen_as(errno.ENODEV, f"{device.address}: {error.reason}") from error
        if self.its.is_gicv5 and table.first != device.address:
            raise rules.SHARED_DEVICE_ID.refusal(
                errno.ENODEV,
                f"{device.address}: {table.first} has DeviceID {device.device_id} on ITS "
                f"{self.its.id}, and a GICv5 lets no two devices share one",
                inside=errno.EBUSY,
            )
        return table.size

    def enable(self, device: HostDevice) -> None:
        """MAPTI for each MSI of a device that has a table: ``its_alloc_device_irq``.

        :raise BackendError: ENOSPC when the table has too few events left. If it has some, the
            kernel enables none, and VFIO_DEVICE_SET_IRQS returns their number.
        """
        table = self._tables[device.device_id]
        used = set().union(*table.events.values())
        left = table.size - len(used)
        if left < device.vectors:
            few = f"only {left}" if left else "no"
            rule = rules.NO_EVENT_V5 if self.its.is_gicv5 else rules.NO_EVENT
            raise rule.refusal(
                errno.ENOSPC,
                f"{device.address}: ITS {self.its.id} has {few} events left for "
                f"DeviceID {device.device_id}, and the device has {device.vectors} MSIs",
            )
        free = filterfalse(used.__contains__, range(table.size))
        table.events[device.address] = tuple(islice(free, device.vectors))

    def disable(self, device: HostDevice) -> None:
        """DISCARD of each MSI of a device."""
        del self._tables[device.device_id].events[device.address]

    def first_lpi(self, device: HostDevice, events: tuple[int, ...]) -> int | None:
        """Return the LPI of a device's first MSI, or None when one of its EventIDs is unknown.

        :param events: the EventIDs that the device writes: :meth:`events_of` of its own ITS.
        """
        table = self._tables.get(device.device_id)
        if table is None or not events:
            return None
        is_known = events == table.events.get(device.address) or set().union(
            *table.events.values()
        ).issuperset(events)
        return table.lpi_base + events[0] if is_known else None

    def events_of(self, device: HostDevice) -> tuple[int, ...]:
        """Return the EventIDs of a device, empty when its MSIs are not enabled."""
        table = self._tables.get(device.device_id)
        return () if table is None else table.events.get(device.address, ())

    def enabled(self) -> frozenset[PciAddress]:
        """Return the devices with enabled MSIs."""
        return frozenset(device for table in self._tables.values() for device in table.events)
