"""Attach devices to guests and detach them, as ``vmm-msi attach`` and ``vmm-msi detach`` do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi import provision
from vmm_msi.library.hosts import any_host
from vmm_msi.library.settings import configuration, plugin_manager
from vmm_msi.report import status as report

if TYPE_CHECKING:
    from vmm_msi.config import Config
    from vmm_msi.library.hosts import AnyHost
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.provision import AttachRequest, DetachRequest
    from vmm_msi.report.documents import ChangeDocument

PLANNED = "nothing was changed; the result would be"


@dataclass(frozen=True)
class Change(provision.Change):
    """A change of one guest, planned or applied.

    :param done: what was done, in words.
    """

    done: str = PLANNED

    def to_json(self) -> ChangeDocument:
        """Return the document that the command prints with ``--format json``."""
        return report.change_to_json(self.old.name, self.record, self.notes, self.done)


def plan_attach(
    connection: Connection,
    plugins: PluginManager | None,
    settings: Config | None,
    host: AnyHost,
    request: AttachRequest,
) -> Change:
    """Query libvirt and plan to attach devices, without changing anything.

    :param plugins: None for the installed ones.
    :param settings: None for the defaults.
    :param host: a host, or its names; its kernel is checked too if it has files.
    :raise VmmMsiError: as :func:`vmm_msi.provision.plan_attach` and
        :func:`vmm_msi.library.hosts.load_host`.
    """
    config, loaded = _prepared(plugins, settings, request)
    change = provision.plan_attach(connection, loaded, config, any_host(host), request)
    return Change(**vars(change))


def attach(
    connection: Connection,
    plugins: PluginManager | None,
    settings: Config | None,
    host: AnyHost,
    request: AttachRequest,
) -> Change:
    """Attach devices, all or none, under the host lock.

    :param plugins: None for the installed ones.
    :param settings: None for the defaults.
    :param host: a host, or its names; its kernel is checked too if it has files.
    :raise VmmMsiError: as :func:`plan_attach` and :func:`vmm_msi.provision.apply_change`;
        everything is as it was, except after an :class:`~vmm_msi.errors.UndoError`.
    """
    config, loaded = _prepared(plugins, settings, request)
    change = provision.attach(connection, loaded, config, any_host(host), request)
    verb = "already attached:" if change.is_empty else "attached"
    return Change(**vars(change), done=f"{verb} {', '.join(map(str, request.devices))}")


def plan_detach(connection: Connection, request: DetachRequest) -> Change:
    """Query libvirt and plan to detach devices, without changing anything.

    :raise VmmMsiError: as :func:`vmm_msi.provision.plan_detach`.
    """
    return Change(**vars(provision.plan_detach(connection, request)))


def detach(
    connection: Connection, request: DetachRequest, plugins: PluginManager | None = None
) -> Change:
    """Detach devices, all or none, under the host lock.

    :param plugins: the plugins to notify; None for none.
    :raise VmmMsiError: as :func:`vmm_msi.provision.detach`.
    """
    change = provision.detach(connection, request, plugins)
    devices = ", ".join(map(str, request.devices)) or "everything"
    return Change(**vars(change), done=f"detached {devices}")


def _prepared(
    plugins: PluginManager | None, settings: Config | None, request: AttachRequest
) -> tuple[Config, PluginManager]:
    """Return the configuration and the plugins of a request.

    :raise UsageError: for values of another type.
    """
    config = configuration(settings)
    named = () if request.strategy is None else (request.strategy,)
    return config, plugin_manager(plugins, config, named)
