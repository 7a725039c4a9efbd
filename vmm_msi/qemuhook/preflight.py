"""List the problems that would keep a vmm-msi guest from working, before QEMU starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.domxml import owned, prerequisites
from vmm_msi.domxml.placement import Placement
from vmm_msi.types.pci_function import leaves_dma_alone

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.metadata import DomainRecord
    from vmm_msi.types import PciAddress

#: The folder in which the kernel lists the PCI devices of the host.
DEVICES = Path("/sys/bus/pci/devices")

_BRIDGE = "0x06"  # the base class of bridges, PCI Code and ID Assignment 1.7


def problems(domain: DomainXml, record: DomainRecord, devices: Path = DEVICES) -> list[str]:
    """Return the problems of a vmm-msi guest that is about to start, a phrase each.

    :param record: the guest's record of the devices and elements that vmm-msi added.
    :param devices: the folder with the host's PCI devices.
    :raise DomainXmlError: when the definition cannot be read.
    """
    phrases = [f"{part} is gone from the definition" for part in owned.gone(domain)]
    if any(device.backend == "qemu" for device in record.devices):
        phrases += map(str, prerequisites.problems(domain))
    phrases += map(str, Placement(domain).empty_vsmmus())
    assigned = {hostdev.host for hostdev in domain.hostdevs()}
    for device in record.devices:
        phrases += _host_problems(device.host, assigned, devices)
    return phrases


def _host_problems(
    host: PciAddress, assigned: Collection[PciAddress], devices: Path
) -> Iterator[str]:
    """Yield the problems of a device on the host.

    The drivers of assigned devices do not matter: libvirt may unbind them after the hook.
    """
    folder = devices / str(host)
    if not folder.is_dir():
        yield f"the host has no PCI device {host}"
        return
    members = folder / "iommu_group" / "devices"
    if not members.is_dir():
        yield f"{host} has no IOMMU group: no IOMMU translates its DMA"
        return
    own = {str(address) for address in assigned} | {str(host)}
    for member in sorted(members.iterdir()):
        driver = _driver(member)
        if member.name not in own and driver is not None and not _is_bridge(member):
            yield (
                f"{member.name} shares the IOMMU group of {host} and is in use by the host's "
                f"driver {driver}"
            )


def _driver(device: Path) -> str | None:
    """Return the host's driver of a device; None without one, or if it leaves DMA alone."""
    link = device / "driver"
    if not link.exists():
        return None
    name = link.resolve().name
    return None if leaves_dma_alone(name) else name


def _is_bridge(device: Path) -> bool:
    try:
        return (device / "class").read_text(encoding="ascii").startswith(_BRIDGE)
    except OSError:
        return False
