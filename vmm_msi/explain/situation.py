"""What is known beside the text: the host, the guest, what vmm-msi recorded of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, ROOT_PORT
from vmm_msi.domxml.metadata import DomainRecord, read_record
from vmm_msi.explain.explanation import Subject
from vmm_msi.host.streams import devices_of_stream, smmus_named
from vmm_msi.types import SW_MSI_WINDOW, Granule, PciAddress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.types import (
        GuestDevice,
        GuestDomain,
        HostDevice,
        HostTopology,
        ReservedRegion,
        StreamId,
    )


@dataclass(frozen=True)
class Situation:
    """What is known beside the text; all of it may be missing.

    :param guest: the guest as strategies see it.
    :param xml: its definition; None where it is described otherwise.
    :param in_guest: the text is from the guest's own log, or an event as it was told to the guest:
        StreamIDs and PCI addresses are the guest's.
    """

    host: HostTopology | None = None
    guest: GuestDomain | None = None
    xml: DomainXml | None = None
    in_guest: bool = False

    @cached_property
    def record(self) -> DomainRecord:
        """What vmm-msi recorded of the guest.

        :raise DomainXmlError: when it is of another version.
        """
        found = None if self.xml is None else read_record(self.xml)
        return DomainRecord() if found is None else found

    @cached_property
    def guest_addresses(self) -> Mapping[PciAddress, PciAddress]:
        """Guest address -> host address of the devices behind expander buses.

        A device there is alone behind its root port, and firmware gives the ports of a bus the
        numbers that follow that bus's own, in the order of their places on it.
        """
        if self.xml is None:
            return {}
        controllers = self.xml.controllers()
        hosts = {each.guest.bus: each for each in self.xml.hostdevs() if each.guest is not None}
        found = {}
        for bus in controllers:
            if bus.model != EXPANDER_BUS or bus.bus_nr is None:
                continue
            ports = [
                (each.address, each.index)
                for each in controllers
                if each.model == ROOT_PORT
                and each.address is not None
                and each.address.bus == bus.index
                and each.index is not None
            ]
            for place, (_address, index) in enumerate(sorted(ports), 1):
                hostdev = hosts.get(index)
                if hostdev is not None and hostdev.guest is not None:
                    device, function = hostdev.guest.device, hostdev.guest.function
                    guest = PciAddress(0, bus.bus_nr + place, device, function)
                    found[guest] = hostdev.host
        return found

    def is_accelerated(self, address: PciAddress) -> bool:
        """Tell whether the definition has a device behind an accelerated vSMMU."""
        if self.xml is None:
            return False
        buses = {f"{each.index}": each.address for each in self.xml.controllers()}
        served = {each.pci_bus for each in self.xml.iommus() if each.driver.get("accel") == "on"}
        for hostdev in self.xml.hostdevs():
            if hostdev.host == address and hostdev.guest is not None:
                port = buses.get(f"{hostdev.guest.bus}")
                return port is not None and f"{port.bus}" in served
        return False

    def by_stream(self, stream: StreamId, smmu: str) -> tuple[Subject, ...]:
        """Return the devices that an SMMU may know as ``stream``.

        :param smmu: what the driver calls the SMMU; empty where that is not known.
        """
        if self.in_guest:
            # QEMU's StreamID is the RequesterID (hw/arm/smmu-common.c smmu_get_sid).
            return (self.by_guest_address(PciAddress.from_rid(0, stream & 0xFFFF)),)
        if self.host is None:
            return ()
        meant = smmus_named(self.host, smmu) if smmu else None
        devices = devices_of_stream(self.host, stream, meant)
        if self.guest is not None and len(devices) > 1:
            assigned = [d for d in devices if d.address in self.guest.device_by_address]
            devices = tuple(assigned) or devices
        return tuple(self.subject(device.address) for device in devices)

    def by_guest_address(self, address: PciAddress) -> Subject:
        """Return the device at an address in the guest."""
        host = self.guest_addresses.get(address)
        if host is None:
            return Subject(None, address)
        known = self.subject(host)
        return Subject(host, address, known.note)

    def subject(self, address: PciAddress) -> Subject:
        """Return a device of the host with what is known of it."""
        notes = []
        device = self.host_device(address)
        if device is not None:
            notes.append("no SMMU" if device.smmu is None else f"SMMU {device.smmu}")
            if device.its_group:
                notes.append(f"ITS {device.its}")
        if self.guest is not None:
            if address in self.guest.device_by_address:
                notes.append(f"in {self.guest.name}")
            else:
                notes.append(f"not in {self.guest.name}")
        recorded = self.record.device(address)
        if recorded is not None:
            options = ",".join(f"{key}={value}" for key, value in recorded.options.items())
            name = f"{recorded.strategy}:{options}" if options else recorded.strategy
            notes.append(f"by {name}, vSMMU on pxb {recorded.pxb}")
        return Subject(address, None, ", ".join(notes))

    def host_device(self, address: PciAddress | None) -> HostDevice | None:
        """Return the host's view of a device, None where the host does not have it."""
        from vmm_msi.errors import TopologyError
        from vmm_msi.host.resolve import resolve

        if self.host is None or address is None:
            return None
        try:
            return resolve(self.host, address)
        except TopologyError:
            return None

    def guest_device(self, address: PciAddress | None) -> GuestDevice | None:
        """Return the guest's view of a device, None where the guest does not have it."""
        if self.guest is None or address is None:
            return None
        return self.guest.device_by_address.get(address)

    @property
    def guest_name(self) -> str:
        """The guest's name, for messages."""
        return "the guest" if self.guest is None else self.guest.name

    @property
    def granule(self) -> Granule | None:
        """The page size of the host's kernel; None where that is not known."""
        host = self.host
        return host.granule if host is not None and host.granule_known else None

    def window(self, device: HostDevice | None) -> ReservedRegion:
        """Return the SW MSI window that the kernel uses for a device."""
        found = None if device is None else device.sw_msi_window
        return SW_MSI_WINDOW if found is None else found
