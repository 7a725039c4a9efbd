"""What a change is planned from, beside the host description: what libvirt says.

Planning itself asks nothing of libvirt (:mod:`vmm_msi.provision.planner`), so that the same edit
is made of a definition that comes from a file.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm_msi.domxml.domcaps import DomainCaps
from vmm_msi.domxml.metadata import DomainRecord, read_record
from vmm_msi.errors import NoHostDeviceError
from vmm_msi.provision.request import BinderKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmm_msi.domxml.guest_state import GuestState
    from vmm_msi.domxml.support import Support
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.provision.request import AttachRequest
    from vmm_msi.types import PciAddress, PciFunction


@dataclass(frozen=True)
class LibvirtFacts:
    """What libvirt says of a guest, of the devices that are to be attached and of itself.

    :param driver: libvirt's name of the driver; None where there is no libvirt.
    :param support: what it can carry for this guest.
    :param holders: which guest has which device, by its definition or as it runs.
    :param nodes: the devices that the node device driver knows.
    """

    driver: str | None
    support: Support
    guest: GuestState
    holders: Sequence[tuple[PciAddress, str]] = ()
    nodes: Mapping[PciAddress, PciFunction] = field(default_factory=dict)


def known_nodes(
    connection: Connection, devices: Iterable[PciAddress]
) -> dict[PciAddress, PciFunction]:
    """Return what libvirt knows of the host's devices; those it does not know are left out."""
    nodes = {}
    for device in dict.fromkeys(devices):
        with suppress(NoHostDeviceError):
            nodes[device] = connection.node_device(device)
    return nodes


def read_facts(connection: Connection, request: AttachRequest) -> LibvirtFacts:
    """Ask libvirt for all that attaching is planned from.

    :raise HypervisorError: when libvirt cannot be asked or has no such domain.
    """
    versions = connection.versions()
    guest = connection.state(request.domain)
    qemu = request.binder_on(versions.driver) is BinderKind.QEMU and versions.driver == "QEMU"
    devices = list(request.devices)
    for xml in filter(None, (guest.definition, guest.running)):
        devices += [device.host for device in (read_record(xml) or DomainRecord()).devices]
    caps = connection.capabilities_for(guest.definition) if qemu else DomainCaps()
    return LibvirtFacts(
        driver=versions.driver,
        support=versions.support(guest.definition.kind, caps),
        guest=guest,
        holders=connection.assigned(),
        nodes=known_nodes(connection, devices),
    )
