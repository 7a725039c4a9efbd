"""Read a document that describes one libvirt domain, from a file or standard input.

libvirt keeps a ``<domain>`` in documents of its own too: ``<domstatus>`` of a running guest in
``/run/libvirt/qemu`` (``src/conf/domain_conf.c`` virDomainObjFormat), ``<domainsnapshot>``
(``src/conf/snapshot_conf.c``) and ``<domaincheckpoint>`` (``src/conf/checkpoint_conf.c``).
"""

from __future__ import annotations

import copy
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.domxml import parse as _parse
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.original import Original
from vmm_msi.domxml.parse import MAX_BYTES
from vmm_msi.errors import DomainXmlError, HypervisorError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lxml.etree import _Element as Element

#: The name of standard input on the command line.
STANDARD_INPUT = "-"

# The end of one document and the start of another.
_NEXT = re.compile(rb"</domain\s*>\s*(?:<\?xml[^>]*>\s*)?<domain[\s>]")
# The elements that libvirt puts around a <domain>.
_WRAPPERS = {"domstatus", "domainsnapshot", "domaincheckpoint"}
# A guest's saved state (libvirt src/qemu/qemu_saveimage.h), complete and incomplete.
_SAVED = (b"LibvirtQemudSave", b"LibvirtQemudPart")


def is_document(guest: str) -> bool:
    """Return whether the command line names a guest by a document, not by its name in libvirt.

    That is ``-`` (standard input), anything with a slash, which libvirt allows in no name, and
    anything that ends in ``.xml``.
    """
    return guest == STANDARD_INPUT or "/" in guest or guest.lower().endswith(".xml")


def read_document(guest: str) -> DomainXml:
    """Read the document that :func:`is_document` recognised.

    :raise DomainXmlError: when it cannot be read or is not the XML of one domain.
    :raise UsageError: when it is standard input, which is closed.
    """
    if guest == STANDARD_INPUT:
        return read_domain(standard_input(), "standard input")
    try:
        with Path(guest).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DomainXmlError(
            f"reading {guest!r}: {reason}; use a file with a libvirt domain XML"
        ) from error
    return read_domain(data, guest)


def standard_input() -> bytes:
    """Return the document on standard input, up to one byte more than is read.

    :raise UsageError: when it is closed.
    """
    if sys.stdin is None:
        raise UsageError("standard input is closed; pass domain XML on it")
    return sys.stdin.buffer.read(MAX_BYTES + 1)


def read_domain(data: bytes, source: str) -> DomainXml:
    """Read one domain XML document, or the ``<domain>`` in a document of libvirt's own.

    :raise DomainXmlError: see :func:`vmm_msi.domxml.parse.parse`; also for a saved state, and for
        the two documents that ``virt-install --print-xml`` prints for a guest with an installation.
    """
    root = _root(data, source)
    if root.tag not in _WRAPPERS:
        return DomainXml(root, source, Original.of(data.decode(), root))
    inside = root.find("domain")
    if inside is None:
        raise DomainXmlError(
            f"reading domain XML from {source}: its <{root.tag!s}> has no <domain>; use the "
            "guest's definition, as virsh dumpxml --inactive prints it"
        )
    domain = copy.deepcopy(inside)
    domain.tail = None
    return DomainXml(domain, source)


def read_editable(data: bytes, source: str) -> DomainXml:
    """Read one domain XML document whose edited text is to replace it.

    :raise DomainXmlError: see :func:`read_domain`; also for a document of libvirt's own, whose
        ``<domain>`` has the state of a run or of the past.
    """
    root = _root(data, source)
    if root.tag in _WRAPPERS:
        raise DomainXmlError(
            f"editing domain XML from {source}: it is a <{root.tag!s}>, which libvirt writes for "
            "its own use; use the guest's definition, as virsh dumpxml --inactive prints it"
        )
    return DomainXml(root, source, Original.of(data.decode(), root))


def _root(data: bytes, source: str) -> Element:
    if data.startswith(_SAVED):
        raise DomainXmlError(
            f"reading domain XML from {source}: it is the saved state of a guest; use what virsh "
            "save-image-dumpxml prints for it"
        )
    try:
        return _parse.parse(data, source)
    except DomainXmlError:
        number = len(_NEXT.findall(data)) + 1
        if number < 2:
            raise
        raise DomainXmlError(
            f"reading domain XML from {source}: it has {number} domains; use one: virt-install "
            "--print-xml 2 prints the guest after the installation, 1 the guest during it, and "
            "--import skips the installation"
        ) from None


@contextmanager
def named_in_libvirt(guest: str) -> Iterator[None]:
    """Add to libvirt's errors about a guest that a file has that name, if one does.

    :raise HypervisorError: the error of the ``with`` block.
    """
    try:
        yield
    except HypervisorError as error:
        if is_document(guest) or not os.path.isfile(guest):  # noqa: PTH113 - False for a name that is too long
            raise
        raise type(error)(f"{error}; to read the file {guest} in this folder, use ./{guest}") from (
            error.__cause__
        )
