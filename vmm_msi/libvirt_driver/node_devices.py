"""Describe the host of a connection by libvirt's node device driver.

https://libvirt.org/html/libvirt-libvirt-nodedev.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.host.join import host_of_functions

if TYPE_CHECKING:
    from vmm_msi.libvirt_driver.connection import Connection
    from vmm_msi.types import HostTopology


def host_of(connection: Connection) -> HostTopology:
    """Return the PCI functions of the host with their IOMMU groups, all that libvirt reports.

    :raise HypervisorError: when the connection fails or has no node device driver.
    """
    missing = (
        f"{connection.uri} reports PCI functions and IOMMU groups, not their SMMUs and ITSes; "
        "name a second HOST that does: a capture, or a folder with the IORT and APIC of that "
        "machine"
    )
    return host_of_functions(
        connection.uri, connection.pci_functions(), connection.page_size(), (missing,)
    )
