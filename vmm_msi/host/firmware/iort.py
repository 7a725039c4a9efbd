"""Read an ACPI IORT into a graph of nodes: Arm DEN0049, revisions up to E.f (node type 7).

This module reads and checks; :mod:`vmm_msi.host.firmware.iort_routes` follows the ID mappings.
Layouts are those of Linux ``include/acpi/actbl2.h``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from vmm_msi.host.firmware.acpi_table import AcpiTable
from vmm_msi.quantity import quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmm_msi.types import TableError

_TABLE_SIZE = 48
#: Type, length, revision, identifier, number of ID mappings and their offset in the node.
_NODE = struct.Struct("<BHBIII")
#: Input base, number of IDs minus one, output base, offset of the node it leads to, flags.
_MAPPING = struct.Struct("<5I")
#: Base and length of a memory range.
_RMR_RANGE = struct.Struct("<QQ4x")
_U32 = struct.Struct("<I")
# What follows the 16 bytes of a node's header.
_ROOT_COMPLEX = struct.Struct("<I3xBII")
_ROOT_COMPLEX_BITS = struct.Struct("<I3xBIIB")
_SMMU = struct.Struct("<Q8xII")
_SMMU_V3 = struct.Struct("<QI12xI4I")
_SMMU_V3_INDEX = struct.Struct("<QI12xI4I4xI")
_PMCG = struct.Struct("<Q4xI")
_RMR = struct.Struct("<III")
_ID_END = 1 << 32
_SEGMENT_END = 1 << 16


class NodeType(IntEnum):
    """The known types of nodes."""

    ITS_GROUP = 0
    NAMED_COMPONENT = 1
    ROOT_COMPLEX = 2
    SMMU = 3
    SMMU_V3 = 4
    PMCG = 5
    RMR = 6
    IWB = 7


#: Types of the targets of ID mappings: only they have input IDs.
_TARGETS = frozenset({NodeType.ITS_GROUP, NodeType.SMMU, NodeType.SMMU_V3, NodeType.IWB})


class IdMapping(NamedTuple):
    """``id_count + 1`` input IDs from ``input_base`` that become IDs of another node.

    :param offset: byte offset in the table.
    :param id_count: number of IDs minus one, as in the table.
    :param target: byte offset of that node.
    :param single: the flag "single mapping": every input becomes ``output_base``.
    """

    offset: int
    input_base: int
    id_count: int
    output_base: int
    target: int
    single: bool

    @property
    def input_last(self) -> int:
        """The last input ID."""
        return self.input_base + self.id_count


@dataclass(frozen=True, slots=True)
class Node:
    """The common part of all nodes; a node of an unknown or unneeded type is of this class.

    :param offset: byte offset in the table.
    :param type: a :class:`NodeType` or an unknown number.
    :param identifier: unique from revision 3 of the table on, 0 before.
    """

    offset: int
    type: int
    revision: int
    identifier: int
    mappings: tuple[IdMapping, ...]


@dataclass(frozen=True, slots=True)
class ItsGroup(Node):
    """The ITSes a device may use; Linux takes the first.

    :param its_ids: GIC ITS ids of the MADT.
    """

    its_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NamedComponent(Node):
    """A device of the ACPI namespace, or an IWB, by its path."""

    name: str


@dataclass(frozen=True, slots=True)
class RootComplex(Node):
    """The PCI hosts of one segment.

    :param coherent: the attribute CCA: it is fully coherent.
    :param memory_flags: bit 0 CPM, bit 1 DACS, bit 2 CANWBS.
    :param ats: the ATS attribute; bit 0: ATS works.
    :param address_bits: memory address size limit in bits, 0 if the revision has none.
    """

    segment: int
    coherent: bool
    memory_flags: int
    ats: int
    address_bits: int

    @property
    def canwbs(self) -> bool:
        """Whether stage 2 alone can make its accesses write-back cacheable and shareable."""
        return bool(self.memory_flags & 4)


@dataclass(frozen=True, slots=True)
class SmmuNode(Node):
    """An SMMU of any version.

    :param base: physical address of its registers.
    :param model: number of the implementation; SMMUv1/v2 and v3 have different numbers.
    :param flags: as in the node.
    :param own_mapping: index of the ID mapping for the SMMUv3's own MSIs, which is not for the IDs
        of devices; None without such a mapping.
    """

    base: int
    model: int
    flags: int
    own_mapping: int | None

    @property
    def is_v3(self) -> bool:
        """Whether it is an SMMUv3."""
        return self.type == NodeType.SMMU_V3


@dataclass(frozen=True, slots=True)
class Pmcg(Node):
    """A performance monitor counter group.

    :param reference: byte offset of the node whose events it counts.
    """

    base: int
    reference: int


@dataclass(frozen=True, slots=True)
class RmrNode(Node):
    """Memory ranges that its StreamIDs need mapped 1:1.

    :param flags: bit 0: remapping is permitted; bit 1: privileged; bits 9:2 attributes.
    :param ranges: base and length in bytes.
    """

    flags: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def remap_permitted(self) -> bool:
        """Whether the operating system may move the mapping or drop it."""
        return bool(self.flags & 1)


@dataclass(frozen=True)
class Iort:
    """A checked IORT: the targets of its ID mappings take IDs, and there are no cycles."""

    source: str
    revision: int
    nodes: tuple[Node, ...] = field(default=())

    @cached_property
    def by_offset(self) -> Mapping[int, Node]:
        """The nodes by byte offset."""
        return {node.offset: node for node in self.nodes}

    @cached_property
    def smmus(self) -> tuple[SmmuNode, ...]:
        """The SMMUs of all versions, in the order of the table."""
        return tuple(node for node in self.nodes if isinstance(node, SmmuNode))

    @cached_property
    def root_complexes(self) -> tuple[RootComplex, ...]:
        """The root complexes, in the order of the table."""
        return tuple(node for node in self.nodes if isinstance(node, RootComplex))

    @cached_property
    def segments(self) -> Mapping[int, RootComplex]:
        """The first root complex of each segment, in the order of the table."""
        first: dict[int, RootComplex] = {}
        for node in self.root_complexes:
            first.setdefault(node.segment, node)
        return first

    @cached_property
    def rmrs(self) -> tuple[RmrNode, ...]:
        """The reserved memory ranges, in the order of the table."""
        return tuple(node for node in self.nodes if isinstance(node, RmrNode))


def parse_iort(data: bytes, source: str, errors: list[TableError] | None = None) -> Iort:
    """Read an IORT.

    :param data: the table.
    :param source: its file, for messages.
    :param errors: receives the errors that Linux tolerates.
    :raise TopologyError: when it is malformed, an ID mapping has no target or is part of a cycle;
        the message has the byte offset.
    """
    table = AcpiTable(data, source, "IORT", _TABLE_SIZE, errors)
    number, offset = table.u32(36), table.u32(40)
    if number and not _TABLE_SIZE <= offset <= table.length:
        table.fail(40, f"node offset {offset:#x} is not from {_TABLE_SIZE:#x} to the table's end")
    nodes: list[Node] = []
    for index in range(number):
        if offset + _NODE.size > table.length:
            table.fail(offset, f"truncated: it has {index} of the {number} nodes (offset 0x24)")
        reader = _NodeReader(table, offset)
        nodes.append(reader.read())
        offset = reader.end
    iort = Iort(source, table.revision, tuple(nodes))
    _check_targets(table, iort)
    _check_cycles(table, iort)
    return iort


#: The common part of all nodes, in the order of :class:`Node`.
_Common: TypeAlias = tuple[int, int, int, int, tuple[IdMapping, ...]]


class _NodeReader:
    """Reads the node at ``offset``, whose header lies within the table."""

    def __init__(self, table: AcpiTable, offset: int) -> None:
        self.table = table
        self.offset = offset
        self.type: int
        self.revision: int
        (
            self.type,
            length,
            self.revision,
            self.identifier,
            self.mappings,
            self.mapping_at,
        ) = table.fields(_NODE, offset)
        self.end: int = offset + length
        if length < _NODE.size:
            table.fail(offset + 1, f"node length {length}; a node has at least {_NODE.size} bytes")
        if self.end > table.length:
            table.fail(
                offset + 1,
                f"node length {length}, but {table.length - offset} bytes of the table remain",
            )

    def read(self) -> Node:
        reader = _READERS.get(self.type)
        if reader is None:
            return Node(self.offset, self.type, self.revision, self.identifier, ())
        return reader(self)

    def its_group(self) -> Node:
        common = self._fixed(20)
        (number,) = self.table.fields(_U32, self.offset + 16)
        first = self._array("ITS identifiers", 20, number, 4, 20)
        return ItsGroup(*common, tuple(its for (its,) in self.table.records(_U32, first, number)))

    def named_component(self) -> Node:
        return NamedComponent(*self._fixed(29), self.table.string(self.offset + 29, self.end))

    def iwb(self) -> Node:
        return NamedComponent(*self._fixed(26), self.table.string(self.offset + 26, self.end))

    def root_complex(self) -> Node:
        common = self._fixed(36 if self.revision else 32)
        form = _ROOT_COMPLEX_BITS if self.revision else _ROOT_COMPLEX
        coherent, memory_flags, ats, segment, *bits = self.table.fields(form, self.offset + 16)
        if segment >= _SEGMENT_END:
            self.table.fail(self.offset + 28, f"PCI segment {segment:#x}: not from 0 to 0xffff")
        return RootComplex(
            *common, segment, bool(coherent & 1), memory_flags, ats, bits[0] if bits else 0
        )

    def smmu(self) -> Node:
        common = self._fixed(60)
        base, model, flags = self.table.fields(_SMMU, self.offset + 16)
        return SmmuNode(*common, base, model, flags, None)

    def smmu_v3(self) -> Node:
        common = self._fixed(68 if self.revision else 60)
        form = _SMMU_V3_INDEX if self.revision else _SMMU_V3
        base, flags, model, *rest = self.table.fields(form, self.offset + 16)
        return SmmuNode(*common, base, model, flags, self._own_mapping(flags, *rest))

    def _own_mapping(
        self, flags: int, event: int, pri: int, error: int, sync: int, index: int | None = None
    ) -> int | None:
        """Return the index of the ID mapping of the SMMUv3's own MSIs.

        Linux ``drivers/acpi/arm64/iort.c`` iort_get_id_mapping_index: nodes have it from revision 1
        on; before revision 5 it is valid unless all interrupts are wired, since then it has a flag.
        """
        valid = flags & 0x10 if self.revision >= 5 else not (event and pri and error and sync)
        return index if valid and index is not None and index < self.mappings else None

    def pmcg(self) -> Node:
        return Pmcg(
            *self._fixed(40 if self.revision else 32), *self.table.fields(_PMCG, self.offset + 16)
        )

    def rmr(self) -> Node:
        common = self._fixed(28)
        flags, number, at = self.table.fields(_RMR, self.offset + 16)
        first = self._array("memory ranges", at, number, _RMR_RANGE.size, 28)
        ranges = tuple(self.table.records(_RMR_RANGE, first, number))
        for offset, (base, length) in zip(count(first, _RMR_RANGE.size), ranges, strict=False):
            if base + length > 1 << 64:
                self.table.fail(offset, f"{length:#x} bytes from {base:#x} exceed 64 bits")
        return RmrNode(*common, flags, ranges)

    def _fixed(self, size: int) -> _Common:
        """Check that the node has ``size`` bytes and return its common part."""
        if self.offset + size > self.end:
            self.table.fail(
                self.offset + 1,
                f"node length {self.end - self.offset}; a node of type {self.type} revision "
                f"{self.revision} has at least {size} bytes",
            )
        return (
            self.offset,
            self.type,
            self.revision,
            self.identifier,
            self._mappings(size) if self.mappings else (),
        )

    def _array(self, what: str, at: int, number: int, size: int, fixed: int) -> int:
        """Check ``number`` elements that start ``at`` bytes into the node; return their offset."""
        first = self.offset + at
        if not number:
            return self.end
        if at < fixed:
            self.table.fail(first, f"{what} overlap the first {fixed} bytes of the node")
        if first + number * size > self.end:
            self.table.fail(first, f"{number} {what} exceed the node, which ends at {self.end:#x}")
        return first

    def _mappings(self, fixed: int) -> tuple[IdMapping, ...]:
        """Return the ID mappings that lie within the node.

        Linux ``drivers/acpi/arm64/iort.c`` iort_node_map_id uses no mapping of a node without an
        offset, and otherwise reads as many as the node counts, also beyond its end; the first that
        has an ID applies, so that those within the node come first.
        """
        at = self.offset + 8
        if not self.mapping_at:
            self.table.tolerate(
                at, f"{quantity(self.mappings, 'ID mapping')} without an offset; none is used"
            )
            return ()
        room = (self.end - self.offset - self.mapping_at) // _MAPPING.size
        usable = self.mappings
        if 0 < room < usable:
            self.table.tolerate(
                at,
                f"{usable} ID mappings, but the node has room for {room}; Linux also reads the "
                "bytes after the node as ID mappings, here they are ignored",
            )
            usable = room
        first = self._array("ID mappings", self.mapping_at, usable, _MAPPING.size, fixed)
        records = self.table.records(_MAPPING, first, usable)
        mappings = tuple(
            IdMapping(offset, base, number, output, target, bool(flags & 1))
            for offset, (base, number, output, target, flags) in zip(
                count(first, _MAPPING.size), records, strict=False
            )
        )
        for offset, base, number, output, _target, single in mappings:
            if single:
                continue
            if base + number >= _ID_END:
                self.table.fail(
                    offset, f"input IDs from {base:#x}, {number:#x} more, exceed 32 bits"
                )
            if output + number >= _ID_END:
                self.table.fail(
                    offset + 8, f"output IDs from {output:#x}, {number:#x} more, exceed 32 bits"
                )
        return mappings


_READERS: dict[int, Callable[[_NodeReader], Node]] = {
    NodeType.ITS_GROUP: _NodeReader.its_group,
    NodeType.NAMED_COMPONENT: _NodeReader.named_component,
    NodeType.ROOT_COMPLEX: _NodeReader.root_complex,
    NodeType.SMMU: _NodeReader.smmu,
    NodeType.SMMU_V3: _NodeReader.smmu_v3,
    NodeType.PMCG: _NodeReader.pmcg,
    NodeType.RMR: _NodeReader.rmr,
    NodeType.IWB: _NodeReader.iwb,
}


def _check_targets(table: AcpiTable, iort: Iort) -> None:
    for node in iort.nodes:
        for mapping in node.mappings:
            target = iort.by_offset.get(mapping.target)
            if target is None:
                table.fail(
                    mapping.offset + 12,
                    f"the target of the ID mapping, offset {mapping.target:#x}, is not a node",
                )
            if target.type not in _TARGETS:
                table.fail(
                    mapping.offset + 12,
                    f"the target of the ID mapping, at offset {mapping.target:#x}, is a node of "
                    f"type {target.type}; only ITS groups, SMMUs and IWBs take IDs",
                )


def _check_cycles(table: AcpiTable, iort: Iort) -> None:
    """Refuse ID mappings that form a cycle; depth first, every mapping once."""
    done: set[int] = set()
    for start in iort.nodes:
        if not start.mappings or start.offset in done:
            continue
        on_path = {start.offset}
        stack: list[tuple[int, Sequence[IdMapping], int]] = [(start.offset, start.mappings, 0)]
        while stack:
            offset, mappings, index = stack.pop()
            if index == len(mappings):
                on_path.discard(offset)
                done.add(offset)
                continue
            stack.append((offset, mappings, index + 1))
            mapping = mappings[index]
            if mapping.target in on_path:
                table.fail(
                    mapping.offset + 12,
                    f"the ID mapping leads back to the node at offset {mapping.target:#x}: a cycle",
                )
            if mapping.target not in done:
                on_path.add(mapping.target)
                stack.append((mapping.target, iort.by_offset[mapping.target].mappings, 0))
