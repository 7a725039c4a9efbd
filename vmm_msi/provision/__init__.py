"""Attach devices to a libvirt domain and detach them: plan first, change once, undo on failure.

``surroundings`` asks libvirt, ``planning`` makes the new XML of the answers without changing
anything (``checks`` says what is refused, ``modelled`` what the model is run with), ``carry``
carries a plan out or leaves everything as it was. Who carries the doorbell binding out is said by
:class:`Carrier`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.provision import planning
from vmm_msi.provision.carry import carry_out
from vmm_msi.provision.request import AttachRequest, Carrier, Change
from vmm_msi.provision.surroundings import Surroundings, gather

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_msi.config import Config
    from vmm_msi.host import PluginHost
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.model import HostTopology, PciAddress

__all__ = [
    "AttachRequest",
    "Carrier",
    "Change",
    "Surroundings",
    "carry_out",
    "gather",
    "plan_attach",
    "plan_detach",
]


def plan_attach(
    connection: Connection,
    plugins: PluginHost,
    settings: Config,
    host: HostTopology,
    request: AttachRequest,
) -> Change:
    """Ask libvirt and plan to attach devices; nothing is changed.

    :raise RefusedError: when the strategy, the model, the libvirt or the guest cannot do it.
    :raise TopologyError: when the host description lacks a device.
    :raise HypervisorError: when libvirt cannot be asked or has no such domain.
    """
    around = gather(connection, request.domain, request.devices)
    return planning.attaching(around, plugins, settings, host, request)


def plan_detach(connection: Connection, domain: str, devices: Sequence[PciAddress]) -> Change:
    """Ask libvirt and plan to take devices out; all that vmm-msi attached when none is named.

    :raise DomainXmlError: when one was not attached by vmm-msi.
    :raise UsageError: when there is nothing to take out.
    :raise HypervisorError: when libvirt cannot be asked or has no such domain.
    """
    definition = connection.domain_xml(domain)
    return planning.detaching(definition, devices, active=connection.is_active(definition.name))
