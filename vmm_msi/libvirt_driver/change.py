"""Replace a guest's definition, or leave it as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml import added_elements
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.errors import HypervisorError, UndoError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_msi.libvirt_driver.connection import Connection


def verify_defined(wanted: DomainXml, got: DomainXml) -> None:
    """Check that libvirt kept all that vmm-msi wrote.

    :param wanted: what was given to libvirt.
    :param got: what it returned afterwards.
    :raise HypervisorError: when something is missing; it names each part.
    """
    lost = added_elements.dropped(wanted, got)
    if lost:
        raise HypervisorError(
            f"defining guest {wanted.name}: libvirt took the XML and dropped {', '.join(lost)}; "
            "valid is a libvirt that knows these"
        )


def only_added(wanted: str, got: str) -> bool:
    """Tell whether all lines of ``wanted`` are in ``got``, in order: libvirt added some at most."""
    lines = iter(got.splitlines())
    return all(line in lines for line in wanted.splitlines())


def redefine(
    connection: Connection,
    name: str,
    old: DomainXml,
    new: DomainXml,
    then: Callable[[], None] | None = None,
) -> None:
    """Replace a guest's definition, or leave it as it was.

    :param old: the definition as :meth:`Connection.domain_xml` returned it, secrets included.
    :param new: the one that is wanted; name and UUID are those of ``old``.
    :param then: what else belongs to the change; it undoes what it did itself when it fails.
    :raise HypervisorError: when libvirt refuses ``new`` or drops a part of it, or ``then`` fails.
        ``old`` is defined again first.
    :raise UndoError: when even that fails.
    """
    if (new.name, new.uuid) != (old.name, old.uuid):
        raise HypervisorError(
            f"defining guest {name}: name and UUID would change from {old.name} {old.uuid} to "
            f"{new.name} {new.uuid}; valid is a definition of the same guest"
        )
    try:
        text = str(new)
        echo = connection.define_text(name, text)
        if not only_added(text, echo):
            verify_defined(new, DomainXml.parse(echo, f"guest {name} at {connection.uri}"))
        if then is not None:
            then()
    except BaseException as failure:
        try:
            connection.define_text(name, str(old), validate=False)
        except HypervisorError as again:
            problem = f"putting the old definition back failed too: {again}"
            raise undo_error(connection, name, failure, problem) from failure
        raise


def undo_error(
    connection: Connection, name: str, failure: BaseException, problem: str
) -> UndoError:
    """Return what is to be raised when ``failure`` could not be undone.

    Where the connection is lost nobody can tell what libvirt made of the last call. A definition is
    whole in any case: libvirt writes the file anew and renames it (``src/util/virfile.c``
    virFileRewrite).
    """
    what = str(failure) or type(failure).__name__
    if connection.is_alive():
        return UndoError(f"{what}; and {problem}")
    if isinstance(failure, UndoError):
        return UndoError(what)
    return UndoError(
        f"{what}; the connection is lost, and nothing can be undone or asked over it: the "
        f"definition of {name} is wholly the old or wholly the new one, and vmm-msi status says "
        "which as soon as libvirt answers again"
    )
