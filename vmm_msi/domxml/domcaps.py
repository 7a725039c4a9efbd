"""The capabilities of a hypervisor for a kind of guest.

https://libvirt.org/formatdomaincaps.html. A missing element means unknown, not unsupported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lxml.etree import _Element as Element


@dataclass(frozen=True, slots=True)
class DomainCaps:
    """The capabilities that vmm-msi uses; None if libvirt does not report one.

    :param pci_hostdev: PCI devices of the host can be assigned.
    :param iommufd: they can be assigned through iommufd.
    :param gic3: the guest can have a GICv3.
    :param efi: a UEFI firmware for the guest is installed.
    """

    pci_hostdev: bool | None = None
    iommufd: bool | None = None
    gic3: bool | None = None
    efi: bool | None = None


def read_domain_caps(root: Element) -> DomainCaps:
    """Return the capabilities in a ``<domainCapabilities>``."""
    hostdev = root.find("devices/hostdev")
    pci = _has(hostdev, "subsysType", "pci")
    if hostdev is not None and hostdev.get("supported") == "no":
        pci = False
    gic = root.find("features/gic")
    gic3 = _has(gic, "version", "3")
    if gic is not None and gic.get("supported") == "no":
        gic3 = False
    return DomainCaps(
        pci_hostdev=pci,
        iommufd=_has(hostdev, "iommufd", "yes"),
        gic3=gic3,
        efi=_has(root.find("os"), "firmware", "efi"),
    )


def _has(element: Element | None, enum: str, value: str) -> bool | None:
    """Return whether an ``<enum>`` lists a value; None if the element has no such enum."""
    if element is None:
        return None
    for child in element.iterfind("enum"):
        if child.get("name") == enum:
            return any(entry.text == value for entry in child.iterfind("value"))
    return None
