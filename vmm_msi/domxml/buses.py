"""Where new PCI controllers can go: controller indexes and ranges of bus numbers.

A root bus (pcie.0 or an expander bus) owns the bus numbers from its own up to the next root bus;
firmware numbers the bridges behind it from that range (QEMU ``docs/pcie.txt``; libvirt
``src/qemu/qemu_domain_address.c`` qemuDomainAssignPCIAddresses). A new expander bus cuts a piece
off the range in front of it, and must leave what is in there its numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml.domain import EXPANDER_BUS, PCI_ROOT
from vmm_msi.errors import DomainXmlError

if TYPE_CHECKING:
    from vmm_msi.domxml.domain import DomainXml, PciController

#: Bus numbers of one PCI segment.
BUS_NUMBERS = 256
#: The largest busNr that libvirt takes (``src/conf/domain_conf.c``: 1 to 254).
LAST_BUS_NR = 254
#: Bus numbers that are kept for one vSMMU where there is room: its own and 15 root ports.
USUAL_RANGE = 16
#: The largest controller index that an address can name.
LAST_INDEX = 255
#: Slots of an expander bus.
SLOTS = 32

# Devices that libvirt gives a root port of their own when they have no address yet.
_PLUGGED = (
    "disk", "controller", "filesystem", "interface", "sound", "video", "hostdev", "memballoon",
    "rng", "watchdog", "shmem", "vsock", "crypto",
)  # fmt: skip


def free_index(domain: DomainXml, above: int) -> int:
    """Return the lowest free controller index that is larger than ``above``.

    libvirt asks that a controller's index be larger than that of the bus it is plugged into.

    :raise DomainXmlError: when all are taken.
    """
    taken = {controller.index for controller in domain.controllers()}
    for element in domain.devices.iterchildren("*"):
        address = domain.guest_address(element)
        if address is not None:
            taken.add(address.bus)
    for index in range(above + 1, LAST_INDEX + 1):
        if index not in taken:
            return index
    raise DomainXmlError(
        f"adding a PCI controller to {domain.name}: the indexes {above + 1} to {LAST_INDEX} are "
        "taken; take controllers out first"
    )


def free_slot(domain: DomainXml, bus: int) -> int:
    """Return the lowest free slot of the expander bus with index ``bus``.

    :raise DomainXmlError: when all are taken.
    """
    addresses = map(domain.guest_address, domain.on_bus(bus))
    taken = {address.device for address in addresses if address is not None}
    for slot in range(SLOTS):
        if slot not in taken:
            return slot
    raise DomainXmlError(
        f"adding a root port to {domain.name}: the {SLOTS} slots of expander bus {bus} are taken; "
        "put the device behind another vSMMU"
    )


def free_bus_nr(domain: DomainXml, ports: int) -> int:
    """Return a busNr for a new expander bus with ``ports`` root ports.

    Every root bus that exists keeps its number and the numbers of all bridges behind it. Where
    there is room the new one gets :data:`USUAL_RANGE` numbers, so that it can grow.

    :raise DomainXmlError: when no range is free, or an expander bus has no busNr yet.
    """
    ranges = _ranges(domain)
    least = 1 + ports
    usual = -(-least // USUAL_RANGE) * USUAL_RANGE
    for size, step in ((usual, USUAL_RANGE), (least, 1)):
        for first in range(step, min(LAST_BUS_NR, BUS_NUMBERS - size) + 1, step):
            if not any(first < end and start < first + size for start, end in ranges):
                return first
    raise DomainXmlError(
        f"adding a vSMMU with {ports} root ports to {domain.name}: {least} bus numbers in a row "
        f"are not free among {BUS_NUMBERS}; take PCI controllers out or use fewer vSMMUs"
    )


def check_room(domain: DomainXml, pxb: int) -> None:
    """Check that one more root port on the expander bus with index ``pxb`` gets a bus number.

    :raise DomainXmlError: when the next root bus leaves none.
    """
    start = next((c.bus_nr for c in domain.controllers() if c.index == pxb), None)
    ends = dict(_ranges(domain))
    if start is None:
        raise DomainXmlError(
            f"adding a root port to {domain.name}: expander bus {pxb} is gone; "
            "detach the devices behind it"
        )
    following = min((first for first in ends if first > start), default=BUS_NUMBERS)
    if ends[start] + 1 > following:
        raise DomainXmlError(
            f"adding a root port to {domain.name}: the bus numbers of expander bus {pxb}, "
            f"{start} to {following - 1}, are used up; detach its devices and attach all together"
        )


def _ranges(domain: DomainXml) -> list[tuple[int, int]]:
    """Return for each root bus its number and the first number behind what it needs."""
    controllers = domain.controllers()
    ranges = [(0, _needs(domain, controllers, None))]
    for controller in controllers:
        if controller.model != EXPANDER_BUS:
            continue
        if controller.bus_nr is None or controller.index is None:
            raise DomainXmlError(
                f"adding a vSMMU to {domain.name}: its pcie-expander-bus on line "
                f"{controller.element.sourceline} has no index or busNr yet; define the domain "
                "once, libvirt fills them in"
            )
        needs = _needs(domain, controllers, controller.index)
        ranges.append((controller.bus_nr, controller.bus_nr + needs))
    return ranges


def _needs(domain: DomainXml, controllers: tuple[PciController, ...], root: int | None) -> int:
    """Count the bus numbers of an expander bus, or of pcie.0 for None.

    What has no address yet will be put behind pcie.0 by libvirt.
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
    if root is None:
        count += sum(
            element.find("address") is None
            for element in domain.devices.iterchildren(*_PLUGGED)
            if element.tag != "controller" or element.get("type") != "pci"
        )
    return count
