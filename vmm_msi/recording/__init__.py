"""What happened to the MSIs of a guest that ran on real hardware, in one file.

A recording has the part of the host that the guest's devices use, the guest as strategies see it,
and what was seen: the addresses that the kernel programmed, the interrupts it counted, the events
of SMMUs. It has no name of the host or the guest, no serial number, no MAC.
"""

from __future__ import annotations

# Imported for real: fields are read back from JSON by their types.
from collections.abc import Mapping  # noqa: TC003
from dataclasses import dataclass, field
from enum import StrEnum

from vmm_msi.iommu.smmu_events import SmmuEvent  # noqa: TC001
from vmm_msi.types import GuestDomain, HostTopology, Iova, PciAddress  # noqa: TC001

#: Version of the file; it goes up when a key changes its meaning or goes away.
SCHEMA = 1


class Log(StrEnum):
    """Whose log an event was found in."""

    HOST = "host"
    GUEST = "guest"


@dataclass(frozen=True, slots=True)
class Releases:
    """What it ran on; empty where that is not known."""

    vmm_msi: str
    linux: str = ""
    libvirt: str = ""
    qemu: str = ""


@dataclass(frozen=True, slots=True)
class SeenVector:
    """An MSI of a device that was enabled.

    :param programmed: the address that the kernel wrote into the device; None where it could not
        be read.
    :param interrupts: how often the host's kernel counted it.
    """

    number: int
    programmed: Iova | None
    interrupts: int


@dataclass(frozen=True, slots=True)
class SeenDevice:
    """A device of the guest.

    :param address: on the host.
    :param strategy: name of the strategy it was attached with.
    :param options: the strategy's, as text.
    """

    address: PciAddress
    strategy: str
    options: Mapping[str, str] = field(default_factory=dict)
    vectors: tuple[SeenVector, ...] = ()

    @property
    def programmed(self) -> tuple[Iova, ...]:
        """The different addresses that were programmed."""
        found = (vector.programmed for vector in self.vectors)
        return tuple(sorted({address for address in found if address is not None}))

    @property
    def interrupts(self) -> int:
        """Interrupts of all vectors."""
        return sum(vector.interrupts for vector in self.vectors)


@dataclass(frozen=True, slots=True)
class Slot:
    """A page of the software MSI window.

    :param its: id of the ITS of the device that was programmed with it.
    """

    page: Iova
    its: int


@dataclass(frozen=True, slots=True)
class SeenEvent:
    """An event of an SMMU about a device; StreamIDs of the guest's log are the guest's."""

    device: PciAddress
    log: Log
    event: SmmuEvent


@dataclass(frozen=True)
class Recording:
    """What happened.

    :param slots: in the order of their pages, which is that of their first use.
    :param vlpis: the host's kernel gives MSIs to guests directly (GICv4) and may count none.
    :param unread: what could not be read, and why.
    """

    releases: Releases
    host: HostTopology
    guest: GuestDomain
    devices: tuple[SeenDevice, ...]
    slots: tuple[Slot, ...] = ()
    events: tuple[SeenEvent, ...] = ()
    vlpis: bool = False
    unread: tuple[str, ...] = ()
