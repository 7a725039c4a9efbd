"""What is known of the machines that a log is about: the host, the guest, the guest's record."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from vmm_msi.domxml.guest_buses import guest_addresses
from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS
from vmm_msi.domxml.metadata import record_in
from vmm_msi.domxml.placement import Placement, is_accelerated
from vmm_msi.explain.explanation import Subject
from vmm_msi.host.streams import devices_of_stream, smmus_named
from vmm_msi.types import SW_MSI_WINDOW, Granule, PciAddress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm_msi.domxml.libvirt_domain import DomainXml, PciController
    from vmm_msi.domxml.metadata import DomainRecord
    from vmm_msi.types import (
        GuestDevice,
        GuestDomain,
        HostDevice,
        HostTopology,
        Its,
        ReservedRegion,
        StreamId,
    )


@dataclass(frozen=True)
class LogContext:
    """The machines that a log is about; each may be unknown.

    It looks devices up by what logs call them. It reads nothing itself: host and definition are
    read elsewhere, and the record comes from the definition.

    :param guest: the guest as strategies see it.
    :param xml: its definition; None if it is described otherwise.
    :param in_guest: the guest's own kernel wrote the log, or a VMM passed the event on to it:
        StreamIDs and PCI addresses are the guest's.
    """

    host: HostTopology | None = None
    guest: GuestDomain | None = None
    xml: DomainXml | None = None
    in_guest: bool = False

    @cached_property
    def record(self) -> DomainRecord:
        """The record of vmm-msi in the definition.

        :raise DomainXmlError: if another version wrote it.
        """
        return record_in(self.xml)

    @cached_property
    def placement(self) -> Placement | None:
        """The vSMMUs of the definition; None without one."""
        return None if self.xml is None else Placement(self.xml)

    @cached_property
    def guest_addresses(self) -> Mapping[PciAddress, PciAddress]:
        """Guest address -> host address of the devices behind expander buses."""
        return {} if self.placement is None else guest_addresses(self.placement)

    def is_accelerated(self, address: PciAddress) -> bool:
        """Return whether the definition has a device behind an accelerated vSMMU."""
        if self.placement is None:
            return False
        for hostdev in self.placement.hostdevs:
            if hostdev.host == address:
                iommu = self.placement.vsmmu_of(hostdev.element)
                return iommu is not None and is_accelerated(iommu)
        return False

    def expander_bus(self, bus: int) -> PciController | None:
        """Return the expander bus that a bus of the guest is behind; None if behind pcie.0.

        Firmware gives the buses behind an expander bus the numbers from its own on.
        """
        if self.placement is None:
            return None
        numbers = {
            controller.bus_nr: controller
            for controller in self.placement.controllers
            if controller.model == EXPANDER_BUS and controller.bus_nr is not None
        }
        number = max((number for number in numbers if number <= bus), default=None)
        return None if number is None else numbers[number]

    def by_stream(self, stream: StreamId, smmu: str) -> tuple[Subject, ...]:
        """Return the devices that an SMMU may know as ``stream``.

        :param smmu: the driver's name of the SMMU; empty if unknown.
        """
        if self.in_guest:
            # QEMU's StreamID is the RequesterID (hw/arm/smmu-common.c smmu_get_sid).
            return (self.by_guest_address(PciAddress.from_rid(0, stream & 0xFFFF)),)
        if self.host is None:
            return ()
        smmus = smmus_named(self.host, smmu) if smmu else None
        devices = devices_of_stream(self.host, stream, smmus)
        if self.guest is not None and len(devices) > 1:
            assigned = [d for d in devices if d.address in self.guest.device_by_address]
            devices = tuple(assigned) or devices
        return tuple(self.subject(device.address) for device in devices)

    def by_guest_address(self, address: PciAddress) -> Subject:
        """Return the device at an address in the guest."""
        host_address = self.guest_addresses.get(address)
        if host_address is None:
            return Subject(None, address)
        return Subject(host_address, address, self.subject(host_address).note)

    def subject(self, address: PciAddress) -> Subject:
        """Return a device of the host, with its SMMU, its ITS and its guest as note."""
        notes = []
        device = self.host_device(address)
        if device is not None:
            notes.append("no SMMU" if device.smmu is None else f"SMMU {device.smmu}")
            if device.its_group:
                notes.append(f"ITS {device.its}")
        if self.guest is not None:
            assigned = address in self.guest.device_by_address
            notes.append(f"{'' if assigned else 'not '}in {self.guest.name}")
        recorded = self.record.device(address)
        if recorded is not None:
            options = ",".join(f"{key}={value}" for key, value in recorded.options.items())
            name = f"{recorded.strategy}:{options}" if options else recorded.strategy
            notes.append(f"by {name}, vSMMU on pxb {recorded.pxb}")
        return Subject(address, None, ", ".join(notes))

    def host_device(self, address: PciAddress | None) -> HostDevice | None:
        """Return the host's view of a device; None if the host does not have it."""
        from vmm_msi.errors import TopologyError
        from vmm_msi.host.resolve import resolve

        if self.host is None or address is None:
            return None
        try:
            return resolve(self.host, address)
        except TopologyError:
            return None

    def guest_device(self, address: PciAddress | None) -> GuestDevice | None:
        """Return the guest's view of a device; None if the guest does not have it."""
        if self.guest is None or address is None:
            return None
        return self.guest.device_by_address.get(address)

    def its_of(self, device: HostDevice | None) -> Its | None:
        """Return the ITS that the kernel uses for a device; None if unknown."""
        if self.host is None or device is None or not device.its_group:
            return None
        return self.host.its_by_id.get(device.its)

    @property
    def guest_name(self) -> str:
        """The guest's name, for messages."""
        return "the guest" if self.guest is None else self.guest.name

    @property
    def granule(self) -> Granule | None:
        """The page size of the host's kernel; None if unknown."""
        host = self.host
        return host.granule if host is not None and host.granule_known else None

    def window(self, device: HostDevice | None) -> ReservedRegion:
        """Return the SW MSI window that the kernel uses for a device."""
        window = None if device is None else device.sw_msi_window
        return SW_MSI_WINDOW if window is None else window
