"""An ACPI IORT as a graph of small values: Arm DEN0049, revisions up to E.f (node type 7).

This module reads and checks; :mod:`vmm_msi.topology.iort_routes` follows the ID mappings. Layouts
are those of Linux ``include/acpi/actbl2.h``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING

from vmm_msi.topology.acpi_table import AcpiTable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TABLE_SIZE = 48
_NODE_SIZE = 16
_MAPPING_SIZE = 20
_RMR_SIZE = 20
_ID_END = 1 << 32
_SEGMENT_END = 1 << 16


class NodeType(IntEnum):
    """Types of nodes that are known."""

    ITS_GROUP = 0
    NAMED_COMPONENT = 1
    ROOT_COMPLEX = 2
    SMMU = 3
    SMMU_V3 = 4
    PMCG = 5
    RMR = 6
    IWB = 7


#: Nodes an ID mapping can lead to: only they have input IDs.
_TARGETS = frozenset({NodeType.ITS_GROUP, NodeType.SMMU, NodeType.SMMU_V3, NodeType.IWB})


@dataclass(frozen=True, slots=True)
class IdMapping:
    """``id_count + 1`` input IDs from ``input_base`` that become IDs of another node.

    :param offset: byte offset in the table.
    :param id_count: number of IDs minus one, as the table has it.
    :param target: byte offset of the node it leads to.
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
    """What all nodes have; a node of an unknown or unneeded type is of this class itself.

    :param offset: byte offset in the table.
    :param type: a :class:`NodeType` or a number that is not known.
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
    :param ats: the ATS attribute; bit 0 says that ATS works.
    :param address_bits: memory address size limit in bits, 0 where the revision has none.
    """

    segment: int
    coherent: bool
    memory_flags: int
    ats: int
    address_bits: int

    @property
    def canwbs(self) -> bool:
        """Its accesses can be made write-back cacheable and shareable by stage 2 alone."""
        return bool(self.memory_flags & 4)


@dataclass(frozen=True, slots=True)
class SmmuNode(Node):
    """An SMMU of any version.

    :param base: physical address of its registers.
    :param model: which implementation; the numbers differ between SMMUv1/v2 and v3.
    :param flags: as in the node.
    :param own_mapping: index of the ID mapping that stands for the SMMUv3's own MSIs and is not
        for the IDs of devices; None where there is none.
    """

    base: int
    model: int
    flags: int
    own_mapping: int | None

    @property
    def is_v3(self) -> bool:
        """It is an SMMUv3."""
        return self.type == NodeType.SMMU_V3


@dataclass(frozen=True, slots=True)
class Pmcg(Node):
    """A performance monitor counter group.

    :param reference: byte offset of the node it counts for.
    """

    base: int
    reference: int


@dataclass(frozen=True, slots=True)
class RmrNode(Node):
    """Memory ranges that the StreamIDs it maps need 1:1.

    :param flags: bit 0: remapping is permitted; bit 1: privileged; bits 9:2 attributes.
    :param ranges: base and length in bytes.
    """

    flags: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Iort:
    """A checked IORT: references lead to nodes that can be mapped to, without cycles."""

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
    def rmrs(self) -> tuple[RmrNode, ...]:
        """The reserved memory ranges, in the order of the table."""
        return tuple(node for node in self.nodes if isinstance(node, RmrNode))


def parse_iort(data: bytes, source: str) -> Iort:
    """Read an IORT.

    :param data: the table.
    :param source: the file it is from, for messages.
    :raise TopologyError: when it is malformed, an ID mapping leads nowhere or in a circle; the
        message has the byte offset.
    """
    table = AcpiTable(data, source, "IORT", _TABLE_SIZE)
    count, offset = table.u32(36), table.u32(40)
    if count and not _TABLE_SIZE <= offset <= table.length:
        table.fail(40, f"node offset {offset:#x} is not from {_TABLE_SIZE:#x} to the table's end")
    nodes: list[Node] = []
    for index in range(count):
        if offset + _NODE_SIZE > table.length:
            table.fail(offset, f"truncated: {index} of the {count} nodes (offset 0x24) are here")
        length = table.u16(offset + 1)
        if length < _NODE_SIZE:
            table.fail(offset + 1, f"node length {length}; a node has at least {_NODE_SIZE} bytes")
        if offset + length > table.length:
            table.fail(
                offset + 1,
                f"node length {length}, but {table.length - offset} bytes of the table remain",
            )
        nodes.append(_NodeReader(table, offset, length).read())
        offset += length
    iort = Iort(source, table.revision, tuple(nodes))
    _check_targets(table, iort)
    _check_cycles(table, iort)
    return iort


class _NodeReader:
    """Reads the node of ``length`` bytes at ``offset``."""

    def __init__(self, table: AcpiTable, offset: int, length: int) -> None:
        self.table = table
        self.offset = offset
        self.end = offset + length
        self.type = table.u8(offset)
        self.revision = table.u8(offset + 3)

    def read(self) -> Node:
        readers = {
            NodeType.ITS_GROUP: self._its_group,
            NodeType.NAMED_COMPONENT: self._named_component,
            NodeType.ROOT_COMPLEX: self._root_complex,
            NodeType.SMMU: self._smmu,
            NodeType.SMMU_V3: self._smmu_v3,
            NodeType.PMCG: self._pmcg,
            NodeType.RMR: self._rmr,
            NodeType.IWB: self._iwb,
        }
        if self.type not in readers:
            return Node(self.offset, self.type, self.revision, self._u32(4), ())
        return readers[NodeType(self.type)]()

    def _u32(self, at: int) -> int:
        return self.table.u32(self.offset + at)

    def _u64(self, at: int) -> int:
        return self.table.u64(self.offset + at)

    def _fixed(self, size: int) -> tuple[int, int, int, int, tuple[IdMapping, ...]]:
        """Check that the node has ``size`` bytes and return what all nodes have."""
        length = self.end - self.offset
        if length < size:
            self.table.fail(
                self.offset + 1,
                f"node length {length}; revision {self.revision} of node type {self.type} has at "
                f"least {size} bytes",
            )
        return self.offset, self.type, self.revision, self._u32(4), self._mappings(size)

    def _array(self, what: str, at: int, count: int, size: int, fixed: int) -> range:
        """Return the offsets of ``count`` elements whose first is ``at`` bytes into the node."""
        if not count:
            return range(0)
        first = self.offset + at
        if at < fixed:
            self.table.fail(first, f"{what} overlap the first {fixed} bytes of the node")
        if first + count * size > self.end:
            self.table.fail(
                first, f"{count} {what} go beyond the node, which ends at {self.end:#x}"
            )
        return range(first, first + count * size, size)

    def _mappings(self, fixed: int) -> tuple[IdMapping, ...]:
        count, at = self._u32(8), self._u32(12)
        return tuple(
            self._mapping(offset)
            for offset in self._array("ID mappings", at, count, _MAPPING_SIZE, fixed)
        )

    def _mapping(self, offset: int) -> IdMapping:
        base, count, output, target, flags = (
            self.table.u32(offset + step) for step in range(0, _MAPPING_SIZE, 4)
        )
        single = bool(flags & 1)
        if not single and base + count >= _ID_END:
            self.table.fail(offset, f"input IDs from {base:#x}, {count:#x} more, exceed 32 bits")
        if not single and output + count >= _ID_END:
            self.table.fail(
                offset + 8, f"output IDs from {output:#x}, {count:#x} more, exceed 32 bits"
            )
        return IdMapping(offset, base, count, output, target, single)

    def _its_group(self) -> Node:
        common = self._fixed(20)
        count = self._u32(16)
        offsets = self._array("ITS identifiers", 20, count, 4, 20)
        return ItsGroup(*common, tuple(self.table.u32(offset) for offset in offsets))

    def _named_component(self) -> Node:
        return NamedComponent(*self._fixed(29), self.table.string(self.offset + 29, self.end))

    def _iwb(self) -> Node:
        return NamedComponent(*self._fixed(26), self.table.string(self.offset + 26, self.end))

    def _root_complex(self) -> Node:
        common = self._fixed(36 if self.revision else 32)
        segment = self._u32(28)
        if segment >= _SEGMENT_END:
            self.table.fail(self.offset + 28, f"PCI segment {segment:#x}: not from 0 to 0xffff")
        return RootComplex(
            *common,
            segment=segment,
            coherent=bool(self._u32(16) & 1),
            memory_flags=self.table.u8(self.offset + 23),
            ats=self._u32(24),
            address_bits=self.table.u8(self.offset + 32) if self.revision else 0,
        )

    def _smmu(self) -> Node:
        common = self._fixed(60)
        return SmmuNode(*common, self._u64(16), self._u32(32), self._u32(36), None)

    def _smmu_v3(self) -> Node:
        common = self._fixed(68 if self.revision else 60)
        flags = self._u32(24)
        own = self._own_mapping(flags, len(common[-1])) if self.revision else None
        return SmmuNode(*common, self._u64(16), self._u32(40), flags, own)

    def _own_mapping(self, flags: int, count: int) -> int | None:
        """Find the ID mapping of the SMMUv3's own MSIs.

        Linux ``drivers/acpi/arm64/iort.c`` iort_get_id_mapping_index: until node revision 5 it is
        valid unless all interrupts are wired, since then it has a flag.
        """
        valid = flags & 0x10 if self.revision >= 5 else not all(map(self._u32, (44, 48, 52, 56)))
        index = self._u32(64)
        return index if valid and index < count else None

    def _pmcg(self) -> Node:
        return Pmcg(*self._fixed(40 if self.revision else 32), self._u64(16), self._u32(28))

    def _rmr(self) -> Node:
        common = self._fixed(28)
        offsets = self._array("memory ranges", self._u32(24), self._u32(20), _RMR_SIZE, 28)
        ranges = [(self.table.u64(offset), self.table.u64(offset + 8)) for offset in offsets]
        for offset, (base, length) in zip(offsets, ranges, strict=True):
            if base + length > 1 << 64:
                self.table.fail(offset, f"{length:#x} bytes from {base:#x} exceed 64 bits")
        return RmrNode(*common, self._u32(16), tuple(ranges))


def _check_targets(table: AcpiTable, iort: Iort) -> None:
    for node in iort.nodes:
        for mapping in node.mappings:
            target = iort.by_offset.get(mapping.target)
            if target is None:
                table.fail(
                    mapping.offset + 12,
                    f"the ID mapping leads to offset {mapping.target:#x}, where no node starts",
                )
            if target.type not in _TARGETS:
                table.fail(
                    mapping.offset + 12,
                    f"the ID mapping leads to a node of type {target.type} at offset "
                    f"{mapping.target:#x}; only ITS groups, SMMUs and IWBs take IDs",
                )


def _check_cycles(table: AcpiTable, iort: Iort) -> None:
    """Refuse ID mappings that lead in a circle; depth first, every mapping once."""
    done: set[int] = set()
    for start in iort.nodes:
        if start.offset in done:
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
