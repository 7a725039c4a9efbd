"""Carry a planned change out, or leave everything as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm_msi.domxml.domain import DomainXml
    from vmm_msi.host import PluginHost
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.provision.request import Change


def carry_out(
    connection: Connection, change: Change, plugins: PluginHost | None = None
) -> DomainXml:
    """Define the new XML, read it back and check that libvirt kept it; undo on any failure.

    :param plugins: whose observers learn of it, None for nobody.
    :return: what libvirt made of it.
    :raise HypervisorError: when libvirt refuses or drops a part; the old definition is back.
    """
    # Late, so that planning an edit of a file needs no libvirt.
    from vmm_msi.libvirt_driver import redefine

    error = ""
    try:
        return redefine(connection, change.old.name, change.old, change.new)
    except BaseException as failure:
        error = str(failure) or type(failure).__name__
        raise
    finally:
        if plugins is not None and plugins.has_observers:
            for event in change.events:
                plugins.tell(replace(event, error=error))
