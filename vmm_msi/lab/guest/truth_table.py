"""The truth table of ``docs/strategies.md`` for real guests: its rows, its columns, its cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from vmm_msi.errors import errno_name
from vmm_msi.types import BindOrder, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_msi.types import GuestDomain, Iova, PciAddress, Verdict


class Sharing(StrEnum):
    """How the two devices of a guest use stage 1."""

    #: One stage 1 for both: two functions of one slot, one IOMMU group in the guest.
    SHARED = "shared"
    #: A stage 1 for each, with different gIOVAs.
    OWN = "own"
    #: A stage 1 for each, with the same gIOVA in both.
    OWN_SAME = "own-same"


@dataclass(frozen=True, order=True)
class TableGuest:
    """A guest of the table, as it has to be started.

    :param vsmmus: number of its vSMMUs, each on a physical SMMU of its own.
    :param sharing: how its devices use stage 1.
    :param rmr: its IORT has QEMU's RMR of the SW MSI window.
    """

    vsmmus: int
    sharing: Sharing
    rmr: bool

    def __str__(self) -> str:
        rmr = "with" if self.rmr else "without"
        vsmmus = "" if self.vsmmus == 1 else f", {self.vsmmus} vSMMUs"
        return f"stage 1 {self.sharing}{vsmmus}, {rmr} RMR"


@dataclass(frozen=True)
class Row:
    """A row: a guest, and the order in which its devices are bound and prepared.

    A is the device that is bound first. Where their gIOVAs differ, the other device's gIOVA lies in
    the range that is mapped 1:1 for the one whose gIOVA was moved, where it faults at stage 2 and
    not at stage 1. So the moved one has to be the device that keeps its own address: A where A is
    prepared before B is bound, B where the newest binding is taken.
    """

    guest: TableGuest
    order: BindOrder = BindOrder.INTERLEAVED

    def __str__(self) -> str:
        return f"{self.guest}, {self.order}"

    def domain(self, domain: GuestDomain) -> GuestDomain:
        """Return a domain of the row's guest with its devices in the order of the row.

        :param domain: with the device whose gIOVA was moved first.
        """
        devices = domain.devices
        if self.order is BindOrder.BATCHED:
            devices = tuple(reversed(devices))
        return replace(domain, devices=devices, order=self.order)


@dataclass(frozen=True)
class Column:
    """A column: a strategy, and the kernel interface that applies it.

    :param label: its short name.
    :param strategy: as for ``vmm-msi attach``.
    :param allocator: of the kernel's file of guest MSI bindings; None if nothing is bound.
    :param prepares: the address is chosen by ``prepare``, not by ``bind``.
    :param s2_per_its: it needs a stage 2 for each ITS. With one iommufd object QEMU has one for
        each physical SMMU (QEMU ``hw/vfio/iommufd.c`` iommufd_cdev_autodomains_get).
    """

    label: str
    strategy: str
    allocator: str | None = None
    prepares: bool = False
    s2_per_its: bool = False

    def runs_on(self, guest: TableGuest, itses: int) -> bool:
        """Return whether a guest on a host with so many ITSes has the stage 2s that it needs."""
        return not self.s2_per_its or itses == 1 or guest.vsmmus > 1


COLUMNS = (
    Column("identity", "identity"),
    Column("direct", "direct", "direct"),
    Column("multi-its", "multi-its:mode=s2", "direct", s2_per_its=True),
    Column("v2", "coerced:revision=v2", "list", prepares=True),
    Column("v4", "coerced:revision=v4", "device", prepares=True),
    Column("v15", "coerced:revision=v15", "list-one-granule", prepares=True),
)


def rows() -> tuple[Row, ...]:
    """Return the rows, guest by guest."""
    return tuple(
        Row(TableGuest(vsmmus, sharing, rmr), order)
        for vsmmus in (1, 2)
        for sharing in (Sharing.OWN_SAME, Sharing.OWN, Sharing.SHARED)
        # A shared stage 1 is that of one vSMMU.
        if vsmmus == 1 or sharing is not Sharing.SHARED
        for rmr in (True, False)
        for order in (BindOrder.INTERLEAVED, BindOrder.BATCHED)
        # With one gIOVA the order changes nothing.
        if sharing is Sharing.OWN or order is BindOrder.INTERLEAVED
    )


@dataclass(frozen=True)
class DeviceCell:
    """What one device did in one cell.

    :param outcome: None if neither all interrupts arrived nor a fault explains a lost one.
    :param errno: name of the errno with which the kernel refused it; empty if it did not.
    :param address: the addresses in its real MSI-X table.
    :param done: reads.
    :param landed: MSIs that reached its own ITS meanwhile.
    :param arrived: interrupts that the guest counted meanwhile.
    :param faults: its faults that a kernel logged meanwhile: ``host`` or ``guest``, and the line.
    :param misrouted: MSIs that reached another ITS meanwhile.
    """

    device: PciAddress
    outcome: Outcome | None
    errno: str
    address: tuple[Iova, ...]
    done: int
    landed: int
    arrived: int
    faults: Sequence[tuple[str, str]] = ()
    misrouted: int = 0

    @property
    def arrives(self) -> bool:
        """Whether every interrupt arrived."""
        return 0 < self.done == self.landed == self.arrived


@dataclass(frozen=True)
class Cell:
    """What both devices did in one cell, and what the simulator predicted.

    :param guest: what was measured of the guest: stage 1 tables, gIOVAs, RMR.
    :param predicted: a verdict for each device, in the order of ``devices``.
    """

    row: Row
    column: Column
    guest: GuestDomain
    devices: Sequence[DeviceCell]
    predicted: Sequence[Verdict]
    seconds: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether the guest did what the simulator predicted."""
        return all(
            agreement(device, verdict, rmr=self.guest.honours_rmr)
            for device, verdict in zip(self.devices, self.predicted, strict=True)
        )


def agreement(device: DeviceCell, verdict: Verdict, *, rmr: bool) -> bool:
    """Return whether a device did what the simulator predicted.

    A refused device keeps the slot that it had before: its MSIs arrive if the guest has the RMR.
    """
    if device.outcome is not verdict.outcome:
        return False
    if device.outcome is Outcome.REFUSED:
        number = verdict.errno_inside or verdict.errno
        same = number is None or errno_name(number) == device.errno
        return same and device.arrives is rmr
    addresses = verdict.possible or (verdict.programmed,)
    return len(device.address) == 1 and device.address[0] in addresses
