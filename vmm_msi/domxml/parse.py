"""Parse text to an element tree and serialise it, safely.

Domain XML may come from a file of unknown origin. No DTD is read, so no entity is expanded and
nothing is fetched; size and depth are bounded.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

from lxml import etree

from vmm_msi.errors import DomainXmlError

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

#: Limit of XML in bytes, as in libvirt's own protocol: REMOTE_STRING_MAX in libvirt
#: ``src/remote/remote_protocol.x``.
MAX_BYTES = 4 * 1024 * 1024

# The part before the document type declaration (XML 1.0, 2.8, productions 22 and 27).
_PROLOG = re.compile(r"\ufeff?(?:\s+|<\?.*?\?>|<!--.*?-->)*", re.DOTALL)
# Everything but tags, and tags with a double quote; other tags need no change.
_QUOTED = re.compile(r'<!--.*?-->|<!\[CDATA\[.*?\]\]>|<\?.*?\?>|<[^<>"]*"[^<>]*>', re.DOTALL)
_ATTRIBUTE = re.compile(r"""=("[^"]*"|'[^']*')""")


def parse(text: str | bytes, source: str) -> Element:
    """Read an XML document, keeping comments, whitespace, order and foreign namespaces.

    :param text: the document; bytes are UTF-8.
    :param source: origin of the text, for messages.
    :return: the root element.
    :raise DomainXmlError: when it is larger than :data:`MAX_BYTES` bytes, not UTF-8, declares a
        document type, or is not well formed.
    """
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if len(data) > MAX_BYTES:
        raise DomainXmlError(
            f"reading XML from {source}: too many bytes; libvirt accepts up to {MAX_BYTES}"
        )
    try:
        decoded = data.decode()
    except UnicodeDecodeError as error:
        raise DomainXmlError(
            f"reading XML from {source}: byte {error.start} is not UTF-8; "
            "use a UTF-8 document, such as virsh dumpxml prints"
        ) from None
    prolog = _PROLOG.match(decoded)
    start = prolog.end() if prolog is not None else 0
    if decoded.startswith("<!DOCTYPE", start):
        line = decoded.count("\n", 0, start) + 1
        raise _doctype(source, line)
    # With an explicit encoding, a declaration of another one cannot make libxml2 read other text
    # than was checked above.
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        load_dtd=False,
        dtd_validation=False,
        attribute_defaults=False,
        no_network=True,
        huge_tree=False,
        remove_comments=False,
        remove_pis=False,
        strip_cdata=False,
    )
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        reason = (error.msg or "it is empty").partition(", line ")[0]
        raise DomainXmlError(
            f"reading XML from {source}: line {error.lineno or 1}: {reason}; "
            "valid is one well-formed element, such as virsh dumpxml prints"
        ) from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise _doctype(source, 1)
    return root


def serialise(root: Element) -> str:
    """Return the document as text, quoted as libvirt quotes: double in ``<metadata>``, else single.

    libvirt prints the content of ``<metadata>`` by libxml2 and the rest itself, so text that
    libvirt wrote does not change. Parsing the result gives the same tree.

    :param root: the root element; comments before and after it are included.
    """
    nodes = [*reversed([*root.itersiblings(preceding=True)]), root, *root.itersiblings()]
    text = "\n".join(etree.tostring(node, encoding="unicode", with_tail=False) for node in nodes)
    head, start, rest = text.partition("<metadata>")
    metadata, end, tail = rest.rpartition("</metadata>")
    if not end:
        metadata, tail = "", rest
    return "".join((_single_quoted(head), start, metadata, end, _single_quoted(tail), "\n"))


def fragment(element: Element) -> str:
    """Return one element as a document of its own, without the namespaces of its ancestors."""
    alone = copy.deepcopy(element)
    alone.tail = None
    etree.cleanup_namespaces(alone)
    return _single_quoted(etree.tostring(alone, encoding="unicode"))


def _single_quoted(text: str) -> str:
    return _QUOTED.sub(_requote, text)


def _requote(token: re.Match[str]) -> str:
    text = token[0]
    if text.startswith(("<!", "<?")):
        return text
    if "'" not in text and "&quot;" not in text:
        return text.replace('"', "'")
    return _ATTRIBUTE.sub(_single, text)


def _single(attribute: re.Match[str]) -> str:
    quoted = attribute[1]
    if quoted.startswith("'") or "'" in quoted:
        return attribute[0]
    return "='" + quoted[1:-1].replace("&quot;", '"') + "'"


def _doctype(source: str, line: int) -> DomainXmlError:
    return DomainXmlError(
        f"reading XML from {source}: line {line}: a document type declaration is refused, since "
        "it may define entities; use domain XML without <!DOCTYPE>"
    )
