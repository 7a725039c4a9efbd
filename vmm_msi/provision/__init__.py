"""Attach devices to a libvirt domain and detach them: plan first, change once, undo on failure.

``surroundings`` asks libvirt, ``planning`` makes the new XML of the answers without changing
anything (``checks`` says what is refused, ``modelled`` what the model is run with), ``carry``
carries a plan out or leaves everything as it was, ``turns`` keeps others from changing guests
meanwhile. ``files`` plans for XML that no libvirt has yet. Who carries the doorbell binding out is
said by :class:`BinderKind`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml import added_elements
from vmm_msi.domxml.metadata import DomainRecord, read_record
from vmm_msi.errors import RefusedError
from vmm_msi.provision import host_lock, planner
from vmm_msi.provision.apply import apply_change, apply_change_locked
from vmm_msi.provision.fd_passing import open_iommufd, pass_iommufd
from vmm_msi.provision.libvirt_facts import LibvirtFacts, read_facts
from vmm_msi.provision.request import (
    AttachRequest,
    BinderKind,
    Change,
    DetachRequest,
    LiveChange,
    Scope,
    Status,
)

if TYPE_CHECKING:
    from vmm_msi.config import Config
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import HostTopology

__all__ = [
    "AttachRequest",
    "BinderKind",
    "Change",
    "DetachRequest",
    "LibvirtFacts",
    "LiveChange",
    "Scope",
    "Status",
    "apply_change",
    "attach",
    "detach",
    "open_iommufd",
    "pass_iommufd",
    "plan_attach",
    "plan_detach",
    "read_facts",
    "status",
]


def plan_attach(
    connection: Connection,
    plugins: PluginManager,
    settings: Config,
    host: HostTopology,
    request: AttachRequest,
) -> Change:
    """Ask libvirt and plan to attach devices; nothing is changed.

    :raise RefusedError: when the strategy, the model, the libvirt or the guest cannot do it.
    :raise UsageError: when something is asked for that does not exist.
    :raise TopologyError: when the host description lacks a device.
    :raise HypervisorError: when libvirt cannot be asked or has no such domain.
    """
    facts = read_facts(connection, request)
    return planner.plan_attach(facts, plugins, settings, host, request)


def plan_detach(connection: Connection, request: DetachRequest) -> Change:
    """Ask libvirt and plan to take devices out; nothing is changed.

    :raise DomainXmlError: when one was not attached by vmm-msi.
    :raise RefusedError: when what is to be changed is not there.
    :raise UsageError: when there is nothing to take out.
    :raise HypervisorError: when libvirt cannot be asked or has no such domain.
    """
    return planner.plan_detach(connection.state(request.domain), request)


def attach(
    connection: Connection,
    plugins: PluginManager,
    settings: Config,
    host: HostTopology,
    request: AttachRequest,
) -> Change:
    """Attach devices, all or none, while no other change of a guest on that host is under way.

    :raise VmmMsiError: as :func:`plan_attach` and :func:`apply_change`; everything is as it was,
        but for an :class:`~vmm_msi.errors.UndoError`.
    """
    with host_lock.held(connection.hostname()):
        change = plan_attach(connection, plugins, settings, host, request)
        apply_change_locked(connection, change, plugins)
    return change


def detach(
    connection: Connection, request: DetachRequest, plugins: PluginManager | None = None
) -> Change:
    """Take devices out, all or none, while no other change of a guest on that host is under way.

    :raise VmmMsiError: as :func:`plan_detach` and :func:`apply_change`; everything is as it was,
        but for an :class:`~vmm_msi.errors.UndoError`.
    """
    with host_lock.held(connection.hostname()):
        change = plan_detach(connection, request)
        apply_change_locked(connection, change, plugins)
    return change


def status(connection: Connection, domain: str, scope: Scope = Scope.CONFIG) -> Status:
    """Return what vmm-msi added to a guest, and what of it is gone.

    :param scope: whether of its definition or of what runs.
    :raise RefusedError: for what runs, when it does not.
    :raise DomainXmlError: when the record cannot be read.
    :raise HypervisorError: when libvirt cannot be asked or has no such domain.
    """
    state = connection.state(domain)
    xml = state.running if scope.live else state.definition
    if xml is None:
        raise RefusedError(
            f"looking at the running guest {state.definition.name}: it does not run; --scope "
            "config shows its definition"
        )
    return Status(xml.name, read_record(xml) or DomainRecord(), tuple(added_elements.gone(xml)))
