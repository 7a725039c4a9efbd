"""Read a PCI device of the host from libvirt's node device XML.

https://libvirt.org/formatnode.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.errors import InputError
from vmm_msi.types import PciAddress, PciFunction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lxml.etree import _Element as Element


def node_name(host: PciAddress) -> str:
    """Return libvirt's name of the device at ``host``."""
    return f"pci_{host.segment:04x}_{host.bus:02x}_{host.device:02x}_{host.function}"


def read_pci_function(root: Element, source: str) -> PciFunction:
    """Return the PCI function that the XML describes, with its address.

    :param source: name of the device, for messages.
    :raise InputError: when it has no address, or a number in it is invalid.
    """
    capability = root.find("capability[@type='pci']")
    parts = ("domain", "bus", "slot", "function")
    try:
        numbers = [
            int((root if capability is None else capability).findtext(part, ""), 0)
            for part in parts
        ]
    except ValueError:
        raise InputError(
            f"reading {source}: it has no PCI address; valid is libvirt's node device XML"
        ) from None
    return read_node_device(root, PciAddress(*numbers))


def read_node_device(root: Element, host: PciAddress) -> PciFunction:
    """Return the PCI function at ``host`` that the XML describes.

    :raise InputError: when a number in it is invalid.
    """
    capability = root.find("capability[@type='pci']")
    if capability is None:
        return PciFunction(host, driver=root.findtext("driver/name"))
    group = capability.find("iommuGroup")
    numa = capability.find("numa")
    code = capability.findtext("class")
    try:
        return PciFunction(
            address=host,
            iommu_group=None if group is None else int(group.get("number", "")),
            members=() if group is None else tuple(map(_address, group.iterfind("address"))),
            numa_node=None if numa is None else int(numa.get("node", "")),
            driver=root.findtext("driver/name"),
            physical_function=next(_functions(capability, "phys_function"), None),
            virtual_functions=tuple(_functions(capability, "virt_functions")),
            class_code=None if code is None else int(code, 0),
        )
    except ValueError as error:
        raise InputError(
            f"reading host device {host}: {error}; valid is libvirt's node device XML"
        ) from None


def _functions(capability: Element, kind: str) -> Iterator[PciAddress]:
    return map(_address, capability.iterfind(f"capability[@type='{kind}']/address"))


def _address(element: Element) -> PciAddress:
    names = ("domain", "bus", "slot", "function")
    return PciAddress(*(int(element.get(name, "0"), 0) for name in names))
