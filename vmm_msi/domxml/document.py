"""Read a document that describes one libvirt domain."""

from __future__ import annotations

import re

from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.errors import DomainXmlError

# The end of one document and the start of another.
_NEXT = re.compile(rb"</domain\s*>\s*(?:<\?xml[^>]*>\s*)?<domain[\s>]")


def read_domain(data: bytes, source: str) -> DomainXml:
    """Read one domain XML document.

    :raise DomainXmlError: see :func:`vmm_msi.domxml.parse.parse`; also for the two documents that
        ``virt-install --print-xml`` prints for a guest with an installation.
    """
    try:
        return DomainXml.parse(data, source)
    except DomainXmlError:
        number = len(_NEXT.findall(data)) + 1
        if number < 2:
            raise
        raise DomainXmlError(
            f"reading domain XML from {source}: it has {number} domains; use one: virt-install "
            "--print-xml 2 prints the guest after the installation, 1 the guest during it, and "
            "--import skips the installation"
        ) from None
