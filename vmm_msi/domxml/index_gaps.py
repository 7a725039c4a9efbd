"""Close the gaps that removed controllers leave in the indexes.

libvirt's QEMU driver adds a pcie-root-port for every missing index below the largest
(``src/qemu/qemu_domain_address.c`` qemuDomainAssignPCIAddresses), which would stay when the last
device is removed. An index is libvirt's name of a bus; the guest sees bus numbers and slots, which
do not change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.domxml.metadata import read_record, write_record
from vmm_msi.domxml.reserve import move

if TYPE_CHECKING:
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.metadata import DomainRecord


def close_gaps(domain: DomainXml) -> DomainXml:
    """Return ``domain`` with vmm-msi's controllers at the lowest possible indexes.

    :return: ``domain`` itself if no controller moves.
    :raise DomainXmlError: when the record or an address cannot be read.
    """
    record = read_record(domain)
    moves = {} if record is None else _moves(domain, record)
    if record is None or not moves:
        return domain
    edited = domain.copy()
    for controller in edited.controllers():
        if controller.index in moves:
            controller.element.set("index", str(moves[controller.index]))
            target = controller.element.find("target")
            if target is not None:
                # libvirt derives it from the index; two root ports with one chassis are an error.
                target.attrib.pop("chassis", None)
    for element in edited.devices.iterchildren("*"):
        guest = edited.guest_address(element)
        address = element.find("address")
        if guest is not None and address is not None and guest.bus in moves:
            address.set("bus", f"{moves[guest.bus]:#04x}")
    for iommu in edited.iommus():
        driver = iommu.element.find("driver")
        bus = iommu.pci_bus
        if driver is not None and bus is not None and bus.isdigit() and int(bus) in moves:
            driver.set("pciBus", str(moves[int(bus)]))
    move(edited, moves)
    write_record(
        edited,
        replace(
            record,
            vsmmus=tuple(
                replace(
                    vsmmu,
                    pxb=moves.get(vsmmu.pxb, vsmmu.pxb),
                    spare_ports=tuple(moves.get(port, port) for port in vsmmu.spare_ports),
                )
                for vsmmu in record.vsmmus
            ),
            devices=tuple(
                replace(
                    device,
                    pxb=moves.get(device.pxb, device.pxb),
                    root_port=moves.get(device.root_port, device.root_port),
                )
                for device in record.devices
            ),
        ),
    )
    return edited


def _moves(domain: DomainXml, record: DomainRecord) -> dict[int, int]:
    """Return the new index of each of vmm-msi's controllers that moves to a lower one."""
    bus_of = {vsmmu.pxb: 0 for vsmmu in record.vsmmus}
    bus_of |= {port: vsmmu.pxb for vsmmu in record.vsmmus for port in vsmmu.spare_ports}
    bus_of |= {device.root_port: device.pxb for device in record.devices}
    taken = {controller.index for controller in domain.controllers()}
    for element in domain.devices.iterchildren("*"):
        address = domain.guest_address(element)
        if address is not None:
            taken.add(address.bus)
    taken -= bus_of.keys()
    moves: dict[int, int] = {}
    # A bus has a lower index than the controllers that are plugged into it, so it moves first.
    for index in sorted(bus_of):
        bus = bus_of[index]
        lowest = 1 + moves.get(bus, bus)
        new = next((number for number in range(lowest, index) if number not in taken), index)
        taken.add(new)
        if new != index:
            moves[index] = new
    return moves
