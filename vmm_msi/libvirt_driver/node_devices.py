"""Describe the host of a connection by libvirt's node device driver.

https://libvirt.org/html/libvirt-libvirt-nodedev.html
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vmm_msi.errors import NoHostDeviceError
from vmm_msi.host.join import host_of_functions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.libvirt_driver.connection import Connection
    from vmm_msi.types import HostTopology, PciAddress, PciFunction


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


def related_nodes(
    connection: Connection, devices: Iterable[PciAddress]
) -> dict[PciAddress, PciFunction]:
    """Return the host devices, the others of their groups, and their other functions.

    Devices unknown to libvirt are left out.
    """
    functions: dict[PciAddress, PciFunction] = {}
    seen: set[PciAddress] = set()
    pending = set(devices)
    while pending:
        nodes = known_nodes(connection, sorted(pending))
        seen |= pending
        functions |= nodes
        pending = {related for node in nodes.values() for related in _related(node)} - seen
    return functions


def _related(function: PciFunction) -> Iterable[PciAddress]:
    physical = function.physical_function
    return (*function.members, *((physical,) if physical else ()), *function.virtual_functions)


def known_nodes(
    connection: Connection, devices: Iterable[PciAddress]
) -> dict[PciAddress, PciFunction]:
    """Return the host devices as libvirt describes them; devices unknown to it are left out."""
    nodes = {}
    for device in dict.fromkeys(devices):
        with suppress(NoHostDeviceError):
            nodes[device] = connection.node_device(device)
    return nodes
