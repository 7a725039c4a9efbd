"""Replace a guest's definition, or restore the old one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml import added_elements
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.errors import HypervisorError, UndoError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_msi.libvirt_driver.connection import Connection


def verify_defined(written: DomainXml, read_back: DomainXml) -> None:
    """Check that libvirt kept every element that vmm-msi wrote.

    :param written: the definition that libvirt was given.
    :param read_back: the definition that libvirt returned.
    :raise HypervisorError: when parts are missing; the message names each.
    """
    lost = added_elements.dropped(written, read_back)
    if lost:
        raise HypervisorError(
            f"defining guest {written.name}: libvirt accepted the XML and dropped "
            f"{', '.join(lost)}; use a libvirt that supports them"
        )


def only_added(written: str, read_back: str) -> bool:
    """Return whether ``read_back`` has all lines of ``written`` in order, perhaps with others."""
    lines = iter(read_back.splitlines())
    return all(line in lines for line in written.splitlines())


def redefine(
    connection: Connection,
    name: str,
    old: DomainXml,
    new: DomainXml,
    then: Callable[[], None] | None = None,
) -> None:
    """Replace a guest's definition, or restore the old one.

    :param old: the definition as :meth:`Connection.domain_xml` returned it, secrets included.
    :param new: the new definition; name and UUID are those of ``old``.
    :param then: the rest of the change; if it fails, it undoes its own part.
    :raise HypervisorError: when libvirt refuses ``new`` or drops a part of it, or ``then`` fails;
        ``old`` is defined again.
    :raise UndoError: when defining ``old`` again fails.
    """
    if (new.name, new.uuid) != (old.name, old.uuid):
        raise HypervisorError(
            f"defining guest {name}: name and UUID would change from {old.name} {old.uuid} to "
            f"{new.name} {new.uuid}; keep both"
        )
    try:
        text = str(new)
        echo = connection.define_text(name, text)
        if echo != text and not only_added(text, echo):
            verify_defined(new, DomainXml.parse(echo, f"guest {name} at {connection.uri}"))
        if then is not None:
            then()
    except BaseException as failure:
        try:
            connection.define_text(name, str(old), validate=False)
        except HypervisorError as again:
            problem = f"restoring the old definition failed too: {again}"
            raise undo_error(connection, name, failure, problem) from failure
        raise


def undo_error(
    connection: Connection, name: str, failure: BaseException, problem: str
) -> UndoError:
    """Return the error for a ``failure`` that could not be undone.

    If the connection is lost, the result of the last call is unknown. The definition is either the
    old or the new one: libvirt writes a new file and renames it (``src/util/virfile.c``
    virFileRewrite).
    """
    what = str(failure) or type(failure).__name__
    if connection.is_alive():
        return UndoError(f"{what}; and {problem}")
    if isinstance(failure, UndoError):
        return UndoError(what)
    return UndoError(
        f"{what}; the connection is lost, so the change cannot be undone: the definition of {name} "
        "is either the old or the new one; vmm-msi status shows which when libvirt answers again"
    )
