"""Number the buses of a guest as its firmware does, to find a device by its address there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, ROOT_PORT
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm_msi.domxml.placement import Placement
    from vmm_msi.domxml.qemu_arguments import QemuDevice

_FUNCTIONS = 8


def guest_addresses(placement: Placement) -> Mapping[PciAddress, PciAddress]:
    """Return guest address -> host address of the devices behind expander buses.

    Each such device is alone behind its root port, and firmware numbers the ports of a bus from
    that bus's own number on, in the order of their addresses on it.
    """
    hostdevs = {}
    for hostdev in placement.hostdevs:
        if hostdev.argument is not None:
            bus = placement.bus_named(hostdev.argument.bus)
            hostdevs[bus] = divmod(hostdev.argument.devfn or 0, _FUNCTIONS), hostdev.host
        elif hostdev.guest is not None:
            place = hostdev.guest.device, hostdev.guest.function
            hostdevs[str(hostdev.guest.bus)] = place, hostdev.host
    addresses = {}
    for bus, first in _expander_buses(placement).items():
        for number, port in enumerate(_ports_on(placement, bus), first + 1):
            if port in hostdevs and number <= 0xFF:
                (device, function), host = hostdevs[port]
                addresses[PciAddress(0, number, device, function)] = host
    return addresses


def _expander_buses(placement: Placement) -> dict[str, int]:
    """Return the number of each expander bus by its name."""
    numbers = {
        str(controller.index): controller.bus_nr
        for controller in placement.controllers
        if controller.model == EXPANDER_BUS and controller.bus_nr is not None
    }
    for device in placement.arguments.devices:
        if device.is_expander_bus and device.id is not None and device.bus_nr is not None:
            numbers[device.id] = device.bus_nr
    return numbers


def _ports_on(placement: Placement, bus: str) -> list[str]:
    """Return the root ports on a bus, by name, in the order of their addresses.

    QEMU realizes the devices of its command line in order, libvirt's before those of
    ``<qemu:commandline>``; one without an address gets the first free slot (``hw/pci/pci.c``
    do_pci_register_device).
    """
    ports = {
        controller.address.device * _FUNCTIONS + controller.address.function: str(controller.index)
        for controller in placement.controllers
        if controller.model == ROOT_PORT
        and controller.address is not None
        and str(controller.address.bus) == bus
    }
    for device in placement.arguments.devices:
        if _is_port_on(placement, device, bus):
            free = (slot for slot in range(0, 256, _FUNCTIONS) if slot not in ports)
            place = device.devfn if device.devfn is not None else next(free, 256)
            ports[place] = device.id or ""
    return [ports[place] for place in sorted(ports)]


def _is_port_on(placement: Placement, device: QemuDevice, bus: str) -> bool:
    return device.is_root_port and placement.bus_named(device.bus) == bus
