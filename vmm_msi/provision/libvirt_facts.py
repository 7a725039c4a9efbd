"""What libvirt reports, and a change is planned from, beside the host description.

Planning itself does not call libvirt (:mod:`vmm_msi.provision.planner`), so that a definition in a
file is edited in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm_msi.domxml.domcaps import DomainCaps
from vmm_msi.domxml.metadata import record_in
from vmm_msi.types import BinderKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm_msi.domxml.guest_state import GuestState
    from vmm_msi.domxml.support import Support
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.provision.request import AttachRequest
    from vmm_msi.types import PciAddress, PciFunction


@dataclass(frozen=True)
class LibvirtFacts:
    """What libvirt reports of itself, of a guest and of the devices to attach.

    :param driver: libvirt's name of the driver; None without a libvirt.
    :param support: what libvirt and QEMU support for this guest.
    :param holders: assigned devices, each with the guest that has it, in its definition or as it
        runs.
    :param nodes: the devices that the node device driver knows, the others of their groups and
        their other functions.
    :param source: what messages call libvirt.
    """

    driver: str | None
    support: Support
    guest: GuestState
    holders: Sequence[tuple[PciAddress, str]] = ()
    nodes: Mapping[PciAddress, PciFunction] = field(default_factory=dict)
    source: str = ""


def read_facts(connection: Connection, request: AttachRequest) -> LibvirtFacts:
    """Query libvirt for all that an attach is planned from.

    :raise HypervisorError: if libvirt cannot be queried or has no such domain.
    """
    # Late, so that planning an edit of a file needs no libvirt.
    from vmm_msi.libvirt_driver.node_devices import related_nodes

    versions = connection.versions()
    guest = connection.state(request.domain)
    qemu = request.binder_on(versions.driver) is BinderKind.QEMU and versions.driver == "QEMU"
    devices = list(request.devices)
    for xml in filter(None, (guest.definition, guest.running)):
        devices += [device.host for device in record_in(xml).devices]
    caps = connection.capabilities_for(guest.definition) if qemu else DomainCaps()
    return LibvirtFacts(
        driver=versions.driver,
        support=versions.support(guest.definition.kind, caps),
        guest=guest,
        holders=connection.assigned(),
        nodes=related_nodes(connection, devices),
        source=f"libvirt at {connection.uri}",
    )
