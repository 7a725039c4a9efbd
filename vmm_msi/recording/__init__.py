"""Recordings: the MSIs of a guest that ran on real hardware, in one file.

A recording has the part of the host that the guest's devices use, the guest as strategies see it,
and the observations: the addresses that the kernel programmed, the interrupts that it counted, and
the events of SMMUs. It has no name of the host or the guest, no serial number and no MAC address.
"""

from __future__ import annotations

# Imported at run time: msgspec converts JSON by the types of the fields.
from collections.abc import Mapping  # noqa: TC003
from dataclasses import dataclass, field
from enum import StrEnum

from vmm_msi.iommu.smmu_events import SmmuEvent  # noqa: TC001
from vmm_msi.types import GuestDomain, HostTopology, Iova, Ipa, Pa, PciAddress  # noqa: TC001

#: Version of the file format; it increases when a key changes its meaning or is removed.
SCHEMA = 1


class LogOrigin(StrEnum):
    """The kernel whose log has an event."""

    HOST = "host"
    GUEST = "guest"


@dataclass(frozen=True, slots=True)
class Releases:
    """The releases of the software that was used; empty if unknown."""

    vmm_msi: str
    linux: str = ""
    libvirt: str = ""
    qemu: str = ""


@dataclass(frozen=True, slots=True)
class RecordedVector:
    """An enabled MSI of a device.

    :param programmed: the address that the kernel wrote into the device; None if unreadable.
    :param interrupts: how many interrupts the host's kernel counted.
    """

    number: int
    programmed: Iova | None
    interrupts: int


@dataclass(frozen=True, slots=True)
class RecordedBinding:
    """A binding of a device's MSIs that the host's kernel had.

    :param hpa: page of the host's doorbell; None if gDB was not mapped.
    :param used: the device was programmed with it.
    """

    giova: Iova
    gdb: Ipa
    page_shift: int
    hpa: Pa | None = None
    used: bool = False


@dataclass(frozen=True, slots=True)
class RecordedDevice:
    """A device of the guest.

    :param address: its PCI address on the host.
    :param strategy: name of the strategy that it was attached with.
    :param options: the options of the strategy, as text.
    :param bindings: what the host's kernel had bound, oldest first; the guest's gIOVA is that of
        the binding in use.
    """

    address: PciAddress
    strategy: str
    options: Mapping[str, str] = field(default_factory=dict)
    vectors: tuple[RecordedVector, ...] = ()
    bindings: tuple[RecordedBinding, ...] = ()

    @property
    def programmed(self) -> tuple[Iova, ...]:
        """The distinct addresses that were programmed, sorted."""
        addresses = (vector.programmed for vector in self.vectors)
        return tuple(sorted({address for address in addresses if address is not None}))

    @property
    def interrupts(self) -> int:
        """The number of interrupts of all vectors."""
        return sum(vector.interrupts for vector in self.vectors)


@dataclass(frozen=True, slots=True)
class Slot:
    """A page of the software MSI window.

    :param its: id of the ITS of the device that was programmed with an address in this page.
    """

    page: Iova
    its: int


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An SMMU event of a device; in the guest's log, StreamIDs are the guest's."""

    device: PciAddress
    log: LogOrigin
    event: SmmuEvent


@dataclass(frozen=True)
class Recording:
    """The observations of one guest on one host.

    :param slots: the slots in the order of their pages, which is the order of their first use.
    :param vlpis: the host delivers MSIs to the guest directly (GICv4), so its kernel may not count
        them.
    :param unread: the sources that could not be read, with the reason.
    """

    releases: Releases
    host: HostTopology
    guest: GuestDomain
    devices: tuple[RecordedDevice, ...]
    slots: tuple[Slot, ...] = ()
    events: tuple[RecordedEvent, ...] = ()
    vlpis: bool = False
    unread: tuple[str, ...] = ()
