"""Attach devices to a libvirt domain and detach them: plan first, change once, undo on failure.

``libvirt_facts`` queries libvirt, ``planner`` makes the new XML of the facts without changing
anything, ``checks`` has what is refused, ``apply`` applies a plan or leaves everything as it was,
and ``host_lock`` keeps other processes of vmm-msi from changing guests meanwhile.
``definition_file`` plans for XML that is not defined yet, ``fd_passing`` passes an open /dev/iommu
to a guest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.provision import host_lock, planner
from vmm_msi.provision.apply import apply_change, apply_change_locked
from vmm_msi.provision.fd_passing import open_iommufd, pass_iommufd
from vmm_msi.provision.libvirt_facts import LibvirtFacts, read_facts
from vmm_msi.provision.request import (
    AttachRequest,
    Change,
    DetachRequest,
    LiveChange,
    Scope,
)

if TYPE_CHECKING:
    from vmm_msi.config import Config
    from vmm_msi.host.sources import HostSources
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import HostTopology

__all__ = [
    "AttachRequest",
    "Change",
    "DetachRequest",
    "LibvirtFacts",
    "LiveChange",
    "Scope",
    "apply_change",
    "attach",
    "detach",
    "open_iommufd",
    "pass_iommufd",
    "plan_attach",
    "plan_detach",
    "read_facts",
]


def plan_attach(
    connection: Connection,
    plugins: PluginManager,
    settings: Config,
    host: HostTopology | HostSources,
    request: AttachRequest,
) -> Change:
    """Query libvirt and plan to attach devices, without changing anything.

    :param host: a description, or the sources of one, whose files also show the kernel.
    :raise FindingsError: if the doctor reports errors for the planned guest.
    :raise RefusedError: if the strategy, the simulator, libvirt or the guest cannot do it.
    :raise UsageError: if the request names something that does not exist.
    :raise TopologyError: if the host description lacks a device.
    :raise HypervisorError: if libvirt cannot be queried or has no such domain.
    """
    facts = read_facts(connection, request)
    return planner.plan_attach(facts, plugins, settings, host, request)


def plan_detach(connection: Connection, request: DetachRequest) -> Change:
    """Query libvirt and plan to detach devices, without changing anything.

    :raise DomainXmlError: if vmm-msi did not attach one of them.
    :raise RefusedError: if the guest has no definition or run that the request is to change.
    :raise UsageError: if no device is attached.
    :raise HypervisorError: if libvirt cannot be queried or has no such domain.
    """
    return planner.plan_detach(connection.state(request.domain), request)


def attach(
    connection: Connection,
    plugins: PluginManager,
    settings: Config,
    host: HostTopology | HostSources,
    request: AttachRequest,
) -> Change:
    """Attach devices, all or none, under the host lock.

    :raise VmmMsiError: as :func:`plan_attach` and :func:`apply_change`; everything is as it was,
        except after an :class:`~vmm_msi.errors.UndoError`.
    """
    with host_lock.held(connection.hostname()):
        change = plan_attach(connection, plugins, settings, host, request)
        apply_change_locked(connection, change, plugins)
    return change


def detach(
    connection: Connection, request: DetachRequest, plugins: PluginManager | None = None
) -> Change:
    """Detach devices, all or none, under the host lock.

    :raise VmmMsiError: as :func:`plan_detach` and :func:`apply_change`; everything is as it was,
        except after an :class:`~vmm_msi.errors.UndoError`.
    """
    with host_lock.held(connection.hostname()):
        change = plan_detach(connection, request)
        apply_change_locked(connection, change, plugins)
    return change
