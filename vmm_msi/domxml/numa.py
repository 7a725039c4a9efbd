"""Map NUMA nodes of the host to NUMA cells of a guest.

https://libvirt.org/formatdomain.html#numa-node-tuning: ``<memnode>`` binds one cell, ``<memory>``
all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.errors import DomainXmlError

if TYPE_CHECKING:
    from vmm_msi.domxml.libvirt_domain import DomainXml

#: Largest number of a host's NUMA node: libvirt ``src/util/virbitmap.c`` accepts larger bitmaps,
#: Linux has at most MAX_NUMNODES, 1024.
_LAST_NODE = 1023


def cells(domain: DomainXml) -> dict[int, frozenset[int]]:
    """Return the NUMA cells of the guest with the host nodes that their memory is bound to.

    :raise DomainXmlError: when a number or a node set cannot be read.
    """
    rest: frozenset[int] = frozenset()
    memory = domain.root.find("numatune/memory")
    if memory is not None and memory.get("nodeset") is not None:
        rest = _nodes(domain, memory.get("nodeset", ""))
    nodes_of = {
        _number(domain, cell.get("id", str(position))): rest
        for position, cell in enumerate(domain.root.iterfind("cpu/numa/cell"))
    }
    for memnode in domain.root.iterfind("numatune/memnode"):
        cell = _number(domain, memnode.get("cellid", ""))
        if cell in nodes_of:
            nodes_of[cell] = _nodes(domain, memnode.get("nodeset", ""))
    return nodes_of


def cell_on(domain: DomainXml, node: int) -> int | None:
    """Return the cell whose memory is on the host's ``node`` alone; None if no cell is.

    :raise DomainXmlError: when a number or a node set cannot be read.
    """
    return min((cell for cell, nodes in cells(domain).items() if nodes == {node}), default=None)


def _nodes(domain: DomainXml, text: str) -> frozenset[int]:
    """Read a node set such as ``0-3,^2``, as libvirt's virBitmapParse does."""
    nodes: set[int] = set()
    for part in text.split(","):
        word = part.strip()
        first, dash, last = word.removeprefix("^").partition("-")
        start = _number(domain, first)
        end = _number(domain, last) if dash else start
        if end < start or (dash and word.startswith("^")):
            raise _bad(domain, text)
        span = range(start, end + 1)
        nodes = nodes.difference(span) if word.startswith("^") else nodes.union(span)
    return frozenset(nodes)


def _number(domain: DomainXml, text: str) -> int:
    digits = text.strip()
    if not (
        digits.isascii() and digits.isdigit() and len(digits) < 6 and int(digits) <= _LAST_NODE
    ):
        raise _bad(domain, text)
    return int(digits)


def _bad(domain: DomainXml, text: str) -> DomainXmlError:
    return DomainXmlError(
        f"reading the NUMA cells of {domain.name}: {text!r} is neither a number nor a node set "
        f"such as 0-3,^2 up to {_LAST_NODE}"
    )
