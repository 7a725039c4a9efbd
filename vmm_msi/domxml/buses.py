"""Allocate controller indexes, slots and bus numbers for new PCI controllers.

A root bus (pcie.0 or an expander bus) owns the bus numbers from its own up to the next root bus;
firmware numbers the bridges behind it from that range (QEMU ``docs/pcie.txt``; libvirt
``src/qemu/qemu_domain_address.c`` qemuDomainAssignPCIAddresses). A new expander bus shortens the
range of the root bus before it, and must leave the bridges there their numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lxml import etree

from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, PCI_ROOT
from vmm_msi.domxml.qemu_arguments import qemu_arguments
from vmm_msi.errors import DomainXmlError

if TYPE_CHECKING:
    from collections.abc import Collection

    from lxml.etree import _Element as Element

    from vmm_msi.domxml.libvirt_domain import DomainXml, PciController
    from vmm_msi.domxml.qemu_arguments import QemuDevice

#: Bus numbers of one PCI segment.
BUS_NUMBERS = 256
#: The largest busNr that libvirt accepts (``src/conf/domain_conf.c``: 1 to 254).
LAST_BUS_NR = 254
#: Bus numbers that a vSMMU gets if that many are free: its own and those of 15 root ports.
USUAL_RANGE = 16
#: The largest controller index in an address.
LAST_INDEX = 255
#: Slots of an expander bus.
SLOTS = 32

# Digits of a bus number on QEMU's command line, less than.
_DIGITS = 5

# Devices for which libvirt may add a root port when they have no address yet, besides some disks,
# controllers and assigned devices.
_PLUGGED = {
    "filesystem", "interface", "sound", "video", "memballoon", "rng", "watchdog", "shmem", "vsock",
    "crypto",
}  # fmt: skip
# Buses of disks that are not PCI devices.
_ELSEWHERE = {"sata", "ide", "scsi", "usb", "fdc", "sd"}


# libxml2 selects them, since a guest may have thousands of other devices.
_addressed = etree.XPath("*[address/@type = 'pci']")
_unplaced = etree.XPath("*[not(address)]")


class GuestBuses:
    """The used indexes, slots and bus numbers of one libvirt domain.

    The constructor reads them; each ``take_`` method adds what it allocates.

    :raise DomainXmlError: when an expander bus has no index or busNr yet.
    """

    def __init__(self, domain: DomainXml) -> None:
        self._name = domain.name
        controllers = domain.controllers()
        self._indexes = {controller.index for controller in controllers}
        self._slots: dict[int, set[int]] = {}
        for element in _addressed(domain.devices):
            address = domain.guest_address(element)
            if address is not None:
                self._indexes.add(address.bus)
                self._slots.setdefault(address.bus, set()).add(address.device)
        unplaced = sum(map(_is_plugged, _unplaced(domain.devices)))
        # First and last bus number + 1 that each root bus needs; None is pcie.0, behind which
        # libvirt places devices without an address.
        self._ranges: dict[int | None, tuple[int, int]] = {
            None: (0, _needs(controllers, None) + unplaced)
        }
        for controller in controllers:
            if controller.model != EXPANDER_BUS:
                continue
            if controller.bus_nr is None or controller.index is None:
                raise DomainXmlError(
                    f"adding a vSMMU to {domain.name}: its pcie-expander-bus on line "
                    f"{controller.element.sourceline} has no index or busNr yet; define the "
                    "guest once, then libvirt fills them in"
                )
            needs = _needs(controllers, controller.index)
            self._ranges[controller.index] = (controller.bus_nr, controller.bus_nr + needs)
        self._take_ranges_of(qemu_arguments(domain.root).devices)

    def _take_ranges_of(self, devices: Collection[QemuDevice]) -> None:
        """Keep the bus numbers of the expander buses on QEMU's command line."""
        for number, pxb in enumerate(device for device in devices if device.is_expander_bus):
            text = pxb.properties.get("bus_nr", "")
            if not (text.isdecimal() and len(text) < _DIGITS):
                continue
            ports = sum(not device.is_endpoint and device.bus == pxb.id for device in devices)
            self._ranges[-1 - number] = (int(text), int(text) + 1 + ports)

    def take_index(self, above: int) -> int:
        """Allocate the lowest free controller index that is larger than ``above``.

        libvirt requires a controller's index to be larger than that of the bus it is plugged into.

        :raise DomainXmlError: when all are used.
        """
        for index in range(above + 1, LAST_INDEX + 1):
            if index not in self._indexes:
                self._indexes.add(index)
                return index
        raise DomainXmlError(
            f"adding a PCI controller to {self._name}: the indexes {above + 1} to {LAST_INDEX} are "
            "used; remove controllers first"
        )

    def take_slot(self, pxb: int) -> int:
        """Allocate the lowest free slot of the expander bus with index ``pxb``.

        :raise DomainXmlError: when all are used.
        """
        taken = self._slots.setdefault(pxb, set())
        for slot in range(SLOTS):
            if slot not in taken:
                taken.add(slot)
                return slot
        raise DomainXmlError(
            f"adding a root port to {self._name}: the {SLOTS} slots of expander bus {pxb} are "
            "used; place the device behind another vSMMU"
        )

    def take_bus_nr(self, pxb: int, ports: int) -> int:
        """Allocate a busNr for the new expander bus ``pxb`` with ``ports`` root ports.

        Existing root buses keep their numbers and those of all bridges behind them. The new one
        gets :data:`USUAL_RANGE` numbers if they are free, as room for more root ports.

        :raise DomainXmlError: when no range is free.
        """
        least = 1 + ports
        usual = -(-least // USUAL_RANGE) * USUAL_RANGE
        for size, step in ((usual, USUAL_RANGE), (least, 1)):
            for first in range(step, min(LAST_BUS_NR, BUS_NUMBERS - size) + 1, step):
                taken = self._ranges.values()
                if not any(first < end and start < first + size for start, end in taken):
                    self._ranges[pxb] = (first, first + 1)
                    return first
        raise DomainXmlError(
            f"adding a vSMMU with {ports} root ports to {self._name}: no {least} consecutive bus "
            f"numbers of {BUS_NUMBERS} are free; remove PCI controllers or use fewer vSMMUs"
        )

    def take_bus(self, pxb: int) -> None:
        """Allocate a bus number for one more root port on the expander bus with index ``pxb``.

        :raise DomainXmlError: when the range is used up, or the expander bus is missing.
        """
        if pxb not in self._ranges:
            raise DomainXmlError(
                f"adding a root port to {self._name}: expander bus {pxb} is missing; "
                "detach the devices behind it"
            )
        start, end = self._ranges[pxb]
        starts = (first for first, _end in self._ranges.values() if first > start)
        following = min(starts, default=BUS_NUMBERS)
        if end + 1 > following:
            raise DomainXmlError(
                f"adding a root port to {self._name}: the bus numbers of expander bus {pxb}, "
                f"{start} to {following - 1}, are used up; detach its devices and attach all "
                "of them together"
            )
        self._ranges[pxb] = (start, end + 1)


def _needs(controllers: tuple[PciController, ...], root: int | None) -> int:
    """Count the bus numbers of an expander bus, or of pcie.0 for None.

    libvirt places a controller without an address behind pcie.0.
    """
    roots = {c.index for c in controllers if c.model == EXPANDER_BUS}
    parents = {c.index: c.address.bus for c in controllers if c.address is not None}
    count = 1
    for controller in controllers:
        if controller.model in {EXPANDER_BUS, PCI_ROOT}:
            continue
        above = parents.get(controller.index)
        for _step in controllers:
            if above is None or above in roots:
                break
            above = parents.get(above)
        count += above == root
    return count


def _is_plugged(element: Element) -> bool:
    """Return whether a device needs a PCI slot; PCI controllers are counted separately."""
    match element.tag:
        case "controller":
            return element.get("type") != "pci"
        case "hostdev":
            return element.get("type") not in {"usb", "scsi"}
        case "disk":
            target = element.find("target")
            return target is None or target.get("bus") not in _ELSEWHERE
        case tag:
            return tag in _PLUGGED
