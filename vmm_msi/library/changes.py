"""Attach devices to guests of a host that is named, or was read before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi import provision
from vmm_msi.library.hosts import any_host

if TYPE_CHECKING:
    from vmm_msi.config import Config
    from vmm_msi.library.hosts import AnyHost
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.provision import AttachRequest, Change


def plan_attach(
    connection: Connection,
    plugins: PluginManager,
    settings: Config,
    host: AnyHost,
    request: AttachRequest,
) -> Change:
    """Query libvirt and plan to attach devices, without changing anything.

    :param host: a host, or its names; its kernel is checked too if it has files.
    :raise VmmMsiError: as :func:`vmm_msi.provision.plan_attach` and
        :func:`vmm_msi.library.hosts.load_host`.
    """
    return provision.plan_attach(connection, plugins, settings, any_host(host), request)


def attach(
    connection: Connection,
    plugins: PluginManager,
    settings: Config,
    host: AnyHost,
    request: AttachRequest,
) -> Change:
    """Attach devices, all or none, under the host lock.

    :param host: a host, or its names; its kernel is checked too if it has files.
    :raise VmmMsiError: as :func:`plan_attach` and :func:`vmm_msi.provision.apply_change`;
        everything is as it was, except after an :class:`~vmm_msi.errors.UndoError`.
    """
    return provision.attach(connection, plugins, settings, any_host(host), request)
