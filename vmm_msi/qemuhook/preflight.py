"""List the problems that would keep a vmm-msi guest from working, before QEMU starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml import added_elements, prerequisites
from vmm_msi.domxml.placement import Placement
from vmm_msi.host.files.folder import this_machine
from vmm_msi.host.pci.sysfs import PciDevices
from vmm_msi.host.pci.vfio_drivers import host_driver_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.metadata import DomainRecord
    from vmm_msi.host.files import HostTree
    from vmm_msi.types import PciAddress


def problems(domain: DomainXml, record: DomainRecord, tree: HostTree | None = None) -> list[str]:
    """Return the problems of a vmm-msi guest that is about to start, a phrase each.

    :param record: the guest's record of the devices and elements that vmm-msi added.
    :param tree: the host's files; the default is this machine's.
    :raise DomainXmlError: when the definition cannot be read.
    """
    placement = Placement(domain)
    gone = added_elements.gone(placement, record)
    phrases = [f"{part} is gone from the definition" for part in gone]
    if any(device.backend == "qemu" for device in record.devices):
        phrases += map(str, prerequisites.problems(domain))
    phrases += map(str, placement.empty_vsmmus())
    assigned = {hostdev.host for hostdev in placement.hostdevs if hostdev.argument is None}
    pci = PciDevices(tree or this_machine())
    for device in record.devices:
        phrases += _host_problems(device.host, assigned, pci)
    return phrases


def _host_problems(
    host: PciAddress, assigned: Collection[PciAddress], pci: PciDevices
) -> Iterator[str]:
    """Yield the problems of a device on the host.

    The drivers of assigned devices do not matter: libvirt may unbind them after the hook.
    """
    if not pci.exists(host):
        yield f"the host has no PCI device {host}"
        return
    function = pci.function(host)
    if function.iommu_group is None:
        yield f"{host} has no IOMMU group: no IOMMU translates its DMA"
        return
    for address in function.members:
        if address == host or address in assigned:
            continue
        member = pci.function(address)
        driver = host_driver_of(member)
        if driver is not None and not member.is_bridge:
            yield (
                f"{address} shares the IOMMU group of {host} and is in use by the host's driver "
                f"{driver}"
            )
