"""What a change is planned from, beside the host description: what libvirt says.

Planning itself asks nothing of libvirt (:mod:`vmm_msi.provision.planning`), so that the same edit
is made of a definition that comes from a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm_msi.domxml.metadata import DomainRecord, read_record
from vmm_msi.errors import NoHostDeviceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmm_msi.domxml.domain import DomainXml
    from vmm_msi.domxml.nodedev import NodeDevice
    from vmm_msi.domxml.support import Support
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.model import PciAddress


@dataclass(frozen=True)
class Surroundings:
    """What libvirt says of a guest, of the devices that are to be attached and of itself.

    :param driver: libvirt's name of the driver; None where there is no libvirt.
    :param support: what it can carry.
    :param definition: the persistent definition of the guest.
    :param active: whether the guest runs.
    :param holders: which guest's XML assigns which device.
    :param nodes: the devices that the node device driver knows.
    """

    driver: str | None
    support: Support
    definition: DomainXml
    active: bool = False
    holders: Sequence[tuple[PciAddress, str]] = ()
    nodes: Mapping[PciAddress, NodeDevice] = field(default_factory=dict)


def gather(connection: Connection, domain: str, devices: Iterable[PciAddress]) -> Surroundings:
    """Ask libvirt for all that a change of ``domain`` with ``devices`` is planned from.

    :raise HypervisorError: when libvirt cannot be asked or has no such domain.
    """
    versions = connection.versions()
    definition = connection.domain_xml(domain)
    record = read_record(definition) or DomainRecord()
    nodes = {}
    for device in dict.fromkeys([*(each.host for each in record.devices), *devices]):
        try:
            nodes[device] = connection.node_device(device)
        except NoHostDeviceError:
            continue
    return Surroundings(
        driver=versions.driver,
        support=versions.support,
        definition=definition,
        active=connection.is_active(definition.name),
        holders=connection.assigned(),
        nodes=nodes,
    )
