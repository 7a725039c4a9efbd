"""Replace a guest's definition, or leave it as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml import owned
from vmm_msi.errors import HypervisorError

if TYPE_CHECKING:
    from vmm_msi.domxml.domain import DomainXml
    from vmm_msi.libvirt_driver.connection import Connection


def verify_defined(wanted: DomainXml, got: DomainXml) -> None:
    """Check that libvirt kept all that vmm-msi wrote.

    :param wanted: what was given to libvirt.
    :param got: what it returned afterwards.
    :raise HypervisorError: when something is missing; it names each part.
    """
    lost = owned.dropped(wanted, got)
    if lost:
        raise HypervisorError(
            f"defining guest {wanted.name}: libvirt took the XML and dropped {', '.join(lost)}; "
            "valid is a libvirt that knows these"
        )


def redefine(connection: Connection, name: str, old: DomainXml, new: DomainXml) -> DomainXml:
    """Replace a guest's definition, or leave it as it was.

    :param old: the definition as :meth:`Connection.domain_xml` returned it, secrets included.
    :param new: the one that is wanted; name and UUID are those of ``old``.
    :return: what libvirt made of ``new``.
    :raise HypervisorError: when libvirt refuses ``new`` or drops a part of it. ``old`` is defined
        again first; where even that fails, the message says so.
    """
    if (new.name, new.uuid) != (old.name, old.uuid):
        raise HypervisorError(
            f"defining guest {name}: name and UUID would change from {old.name} {old.uuid} to "
            f"{new.name} {new.uuid}; valid is a definition of the same guest"
        )
    try:
        got = connection.define(new)
        if got is not new:
            verify_defined(new, got)
    except BaseException as failure:
        try:
            connection.define(old, validate=False)
        except HypervisorError as again:
            raise HypervisorError(
                f"{failure}; and putting the old definition back failed too: {again}"
            ) from failure
        raise
    return got
