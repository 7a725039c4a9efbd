"""List tables, IOMMU groups, devices and interrupts of this machine, a guest."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from vmm_msi.host.files import text
from vmm_msi.host.files.folder import this_machine
from vmm_msi.host.pci.sysfs import GROUPS, PciDevices

if TYPE_CHECKING:
    from vmm_msi.host.files import HostTree
    from vmm_msi.types import PciAddress

_IORT = "/sys/firmware/acpi/tables/IORT"
_INTERRUPTS = "/proc/interrupts"


def look() -> dict[str, object]:
    """Return the guest's IORT, IOMMU groups, PCI devices and interrupts, as JSON."""
    tree = this_machine()
    pci = PciDevices(tree)
    iort = tree.read(_IORT)
    return {
        "iort": None if iort is None else base64.b64encode(iort).decode(),
        "groups": [_group(tree, pci, number) for number in sorted(map(int, tree.names(GROUPS)))],
        "devices": [_device(pci, address) for address in pci.addresses()],
        "interrupts": interrupts(),
    }


def interrupts() -> dict[int, tuple[str, int]]:
    """Return the name and the count of each MSI, such as ``nvme0q1`` and 12, by Linux's number."""
    counts_of = {}
    head, *lines = (text(this_machine(), _INTERRUPTS) or "").splitlines()
    processors = len(head.split())
    for line in lines:
        words = line.split()
        if "ITS" in line and "MSI" in line:
            counts = map(int, words[1 : 1 + processors])
            counts_of[int(words[0].rstrip(":"))] = (words[-1], sum(counts))
    return counts_of


def _group(tree: HostTree, pci: PciDevices, number: int) -> dict[str, object]:
    folder = f"{GROUPS}/{number}"
    return {
        "id": number,
        "devices": [str(member) for member in pci.members(number)],
        "reserved": (text(tree, f"{folder}/reserved_regions") or "").splitlines(),
        "type": text(tree, f"{folder}/type"),
    }


def _device(pci: PciDevices, address: PciAddress) -> dict[str, object]:
    class_code = pci.class_code(address)
    return {
        "address": str(address),
        "class": None if class_code is None else f"{class_code:#08x}",
        "driver": pci.link(address, "driver"),
        "port": pci.parent(address),
    }
