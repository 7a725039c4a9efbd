"""Build the nodes of a device tree, with lookups of cells, phandles and addresses.

Devicetree Specification v0.4; cells, availability and address translation are those of Linux
``drivers/of/base.c`` and ``drivers/of/address.c``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.fdt import read_nodes
from vmm_msi.host.firmware.intervals import first_match, overlapping
from vmm_msi.tomlfile import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmm_msi.host.firmware.intervals import Interval

#: Limit of the depth of a tree: Linux ``drivers/of/fdt.c`` FDT_MAX_DEPTH.
MAX_DEPTH = 64
#: Limit of the cells of an address or a size: Linux ``drivers/of/address.c`` OF_MAX_ADDR_CELLS.
_MAX_CELLS = 4


@dataclass(slots=True, eq=False)
class DtNode:
    """A node; compared by identity.

    :param depth: 0 for the root.
    :param is_available: neither it nor a node above is disabled: ``of_device_is_available``.
    :param is_pci: its device_type is ``pci``: it is a PCI host or bridge.
    :param below_pci: a node above is a PCI host or bridge.
    """

    source: str
    name: str
    parent: DtNode | None
    depth: int
    properties: dict[str, bytes] = field(default_factory=dict)
    is_available: bool = True
    is_pci: bool = False
    below_pci: bool = False

    def settle(self) -> None:
        """Set the derived values, once all properties are present."""
        if "status" in self.properties:
            self.is_available = self.strings("status")[0] in {"okay", "ok"}
        if "device_type" in self.properties:
            self.is_pci = "pci" in self.strings("device_type")
        if self.parent is not None:
            self.is_available = self.is_available and self.parent.is_available
            self.below_pci = self.parent.is_pci or self.parent.below_pci

    @property
    def path(self) -> str:
        """The path from the root, ``/soc/pcie@af800000``."""
        names: list[str] = []
        node: DtNode | None = self
        while node is not None and node.parent is not None:
            names.append(node.name)
            node = node.parent
        return one_line("/" + "/".join(reversed(names)))

    def fail(self, message: str) -> NoReturn:
        """Refuse the tree because of this node.

        :raise TopologyError: always.
        """
        raise TopologyError(f"{self.source}: {self.path}: {message}")

    def cells(self, name: str) -> tuple[int, ...]:
        """Return the property ``name`` as 32-bit numbers; empty if the node lacks it.

        :raise TopologyError: when its length is not a multiple of 4.
        """
        data = self.properties.get(name, b"")
        if len(data) % 4:
            self.fail(f"{name} has {len(data)} bytes, not a multiple of 4")
        return struct.unpack(f">{len(data) // 4}I", data)

    def number(self, name: str) -> int | None:
        """Return the property ``name`` as one 32-bit number; None if the node lacks it.

        :raise TopologyError: when it is not one number.
        """
        if name not in self.properties:
            return None
        cells = self.cells(name)
        if len(cells) != 1:
            self.fail(f"{name} has {len(cells)} numbers, not one")
        return cells[0]

    def strings(self, name: str) -> tuple[str, ...]:
        """Return the property ``name`` as a list of strings; empty if the node lacks it."""
        data = self.properties.get(name, b"")
        return tuple(part.decode("ascii", "replace") for part in data.rstrip(b"\0").split(b"\0"))

    def is_compatible(self, name: str) -> bool:
        """Return whether ``compatible`` lists ``name``."""
        return name in self.strings("compatible")

    def ancestors(self) -> Iterator[DtNode]:
        """Yield the node, its parent and so on to the root."""
        node: DtNode | None = self
        while node is not None:
            yield node
            node = node.parent

    def count(self, name: str) -> int:
        """Return ``#address-cells`` or ``#size-cells`` for the children of this node.

        If it lacks the property, that of the next node above counts, else 1, as in Linux
        ``of_bus_n_addr_cells``.
        """
        for node in self.ancestors():
            value = node.number(name)
            if value is not None:
                if value > _MAX_CELLS:
                    node.fail(f"{name} is {value}; at most {_MAX_CELLS}")
                return value
        return 1


class DeviceTree:
    """All nodes of a blob, in its order.

    :param data: the blob; bytes after its total size are ignored.
    :param source: its file, for messages.
    :raise TopologyError: when it is malformed or larger than Linux accepts.
    """

    def __init__(self, data: bytes, source: str) -> None:
        self.source = source
        self.nodes = tuple(_read_nodes(data, source))
        self._ranges: dict[DtNode, tuple[tuple[Interval, ...], list[tuple[int, int, int]]]] = {}

    def by_phandle(self) -> Mapping[int, DtNode]:
        """Return the nodes by phandle.

        :raise TopologyError: when two nodes have the same.
        """
        nodes: dict[int, DtNode] = {}
        for node in self.nodes:
            value = node.number("phandle")
            value = node.number("linux,phandle") if value is None else value
            if value is None:
                continue
            other = nodes.setdefault(value, node)
            if other is not node:
                node.fail(f"phandle {value:#x} is also that of {other.path}")
        return nodes

    def address(self, node: DtNode, index: int = 0) -> int:
        """Return the CPU address of one entry of the node's ``reg``.

        Linux ``drivers/of/address.c`` of_translate_address.

        :param index: number of the entry.
        :raise TopologyError: when it has no such entry or a bus above does not translate it.
        """
        bus = node.parent
        if bus is None or "reg" not in node.properties:
            node.fail("has no reg")
        cells, sizes = bus.count("#address-cells"), bus.count("#size-cells")
        reg = node.cells("reg")
        first = index * (cells + sizes)
        if not cells or len(reg) < first + cells + sizes:
            which = f"; entry {index} is missing" if index else ""
            node.fail(f"reg has {len(reg)} numbers; an entry has {cells} + {sizes}{which}")
        address = _join(reg[first : first + cells])
        while bus.parent is not None:
            address = self._through(bus, address, node)
            bus = bus.parent
        return address

    def _through(self, bus: DtNode, address: int, node: DtNode) -> int:
        if "ranges" not in bus.properties:
            node.fail(f"{bus.path} has no ranges, so its {address:#x} is not a CPU address")
        if not bus.properties["ranges"]:
            return address
        intervals, entries = self._parsed_ranges(bus)
        interval = next(overlapping(intervals, address, address), None)
        if interval is None:
            node.fail(f"address {address:#x} is in none of the ranges of {bus.path}")
        child, parent, _size = entries[interval.number]
        return parent + address - child

    def _parsed_ranges(
        self, bus: DtNode
    ) -> tuple[tuple[Interval, ...], list[tuple[int, int, int]]]:
        if bus not in self._ranges and bus.parent is not None:
            child, parent = bus.count("#address-cells"), bus.parent.count("#address-cells")
            width = child + parent + bus.count("#size-cells")
            cells = bus.cells("ranges")
            if not width or len(cells) % width:
                bus.fail(f"ranges has {len(cells)} numbers, not a multiple of {width}")
            entries = [
                (
                    _join(cells[at : at + child]),
                    _join(cells[at + child : at + child + parent]),
                    _join(cells[at + child + parent : at + width]),
                )
                for at in range(0, len(cells), width)
            ]
            intervals = first_match([(base, base + size - 1) for base, _out, size in entries])
            self._ranges[bus] = intervals, entries
        return self._ranges[bus]


def _join(cells: tuple[int, ...]) -> int:
    value = 0
    for cell in cells:
        value = value << 32 | cell
    return value


def _read_nodes(data: bytes, source: str) -> Iterator[DtNode]:
    path: list[DtNode] = []
    for depth, name, properties in read_nodes(data, source):
        del path[depth:]
        node = DtNode(source, name, path[-1] if path else None, depth, properties)
        if depth > MAX_DEPTH:
            node.fail(f"the tree is deeper than {MAX_DEPTH} nodes")
        node.settle()
        path.append(node)
        yield node
