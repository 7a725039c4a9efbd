"""Read a guest: by its name in libvirt, or from a document."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm_msi.errors import UsageError

if TYPE_CHECKING:
    from vmm_msi.domxml.libvirt_domain import DomainXml

    #: A libvirt domain by name or UUID, or a file with its XML.
    GuestName = str | os.PathLike[str]


def guest_name(value: object) -> str | None:
    """Return DOMAIN as on the command line; None for no guest.

    :param value: text by the command line's rule (a file has a slash or ends in ``.xml``), or a
        path, which is always that of a file.
    :raise UsageError: for another value, and for standard input, which belongs to the program.
    """
    if value is None:
        return None
    from vmm_msi.domxml.document import STANDARD_INPUT, is_document

    name = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(name, str) or "\0" in name:
        raise UsageError(f"guest {value!r}: not a guest; use its name in libvirt, or a path")
    if name == STANDARD_INPUT:
        raise UsageError("guest '-': standard input belongs to the program; use a file")
    if not isinstance(value, str) and not is_document(name):
        return f"./{name}"
    return name


def read_guest(domain: str, uri: str | None, *, running: bool = False) -> DomainXml:
    """Read the XML of the guest that DOMAIN names.

    :param uri: the libvirt to query if it is a name.
    :param running: of a guest that runs, the XML of its run, not its definition.
    :raise DomainXmlError: if the document cannot be read.
    :raise UsageError: for a name without a libvirt to query.
    :raise HypervisorError: if libvirt cannot be queried or has no such domain.
    """
    from vmm_msi.domxml.document import is_document, named_in_libvirt, read_document

    if is_document(domain):
        return read_document(domain)
    if uri is None:
        raise UsageError(
            f"reading guest {domain}: no libvirt to query; pass its URI, or a file by a name with "
            "a slash or .xml"
        )
    from vmm_msi.libvirt_driver import connect

    with named_in_libvirt(domain), connect(uri, readonly=True) as connection:
        live = running and connection.is_active(domain)
        return connection.domain_xml(domain, inactive=not live)
