"""Copy an IORT with one change (:mod:`vmm_msi.lab.machine.acpi_edit`)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import LabError
from vmm_msi.host.firmware.iort import ItsGroup, NodeType, Pmcg, RmrNode, parse_iort
from vmm_msi.lab.machine.acpi_edit import newer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from vmm_msi.host.firmware.iort import IdMapping, Iort, Node

# Arm DEN0049, IORT structure and IORT node format.
_NODE_COUNT, _FIRST_NODE = 36, 40
_NODE_LENGTH, _MAPPING_COUNT = 1, 8
_MEMORY_FLAGS, _CANWBS = 16 + 7, 1 << 2  # root complex node, memory access properties
_REFERENCE = 12  # of an ID mapping
_PMCG_REFERENCE = 28  # of a PMCG node
_RMR_RANGES = 24  # of an RMR node: the offset of its ranges
_RMR_RANGE = struct.Struct("<QQ")
_IDENTIFIER = 4  # of a node
_U16, _U32 = struct.Struct("<H"), struct.Struct("<I")
#: Input base, number of IDs minus one, output base, reference, flags.
_MAPPING = struct.Struct("<5I")
_MAPPED_IDS = struct.Struct("<III")
#: Type, length, revision, identifier, no ID mappings, number of ITSes, the id of the only one.
_ITS_GROUP = struct.Struct("<BHBI8xII")
_ITS_GROUP_REVISION = 1


class DeviceIds(NamedTuple):
    """The DeviceIDs of an ITS's devices.

    :param its: id of the ITS in the MADT.
    """

    first: int
    last: int
    its: int


@dataclass
class _MovableNode:
    """A node whose place in the table is not yet known.

    :ivar key: its offset in the old table; of a new node, a number that is not an offset.
    :ivar references: the keys of the nodes that it names, by their positions in ``data``.
    """

    key: int
    data: bytearray
    references: dict[int, int]


def with_canwbs(table: bytes, source: str) -> bytes:
    """Return an IORT in which every root complex sets CANWBS.

    :param source: the table's origin, for messages.
    :raise TopologyError: when the table is malformed.
    """
    changed = bytearray(table)
    for root in parse_iort(table, source).root_complexes:
        changed[root.offset + _MEMORY_FLAGS] |= _CANWBS
    return _finished(changed, source)


def with_rmr(table: bytes, source: str, stream_id: int, base: int, size: int) -> bytes:
    """Return an IORT with one more RMR node, for one StreamID that has an RMR already.

    :param source: the table's origin, for messages.
    :param base: first byte of the range to map 1:1.
    :param size: in bytes.
    :raise TopologyError: when the table is malformed.
    :raise LabError: when the StreamID has no RMR, or the node of one has several ranges.
    """
    iort = parse_iort(table, source)
    for node in iort.rmrs:
        if len(node.ranges) != 1 or len(node.mappings) != 1:
            raise LabError(f"{source}: an RMR node has several ranges or mappings; one is needed")
        (mapping,) = node.mappings
        if 0 <= stream_id - mapping.output_base <= mapping.id_count:
            break
    else:
        raise LabError(f"{source}: StreamID {stream_id:#x} has no RMR to copy")
    (length,) = _U16.unpack_from(table, node.offset + _NODE_LENGTH)
    copy = bytearray(table[node.offset : node.offset + length])
    (ranges,) = _U32.unpack_from(copy, _RMR_RANGES)
    _RMR_RANGE.pack_into(copy, ranges, base, size)
    _MAPPED_IDS.pack_into(copy, mapping.offset - node.offset, 0, 0, stream_id)
    _U32.pack_into(copy, _IDENTIFIER, max(other.identifier for other in iort.nodes) + 1)
    changed = bytearray(table) + copy
    _U32.pack_into(changed, _NODE_COUNT, len(iort.nodes) + 1)
    return _finished(changed, source)


def without_rmrs(table: bytes, source: str, keep: Collection[int] = ()) -> bytes:
    """Return an IORT without its RMR nodes.

    :param source: the table's origin, for messages.
    :param keep: nodes whose first range begins at one of these addresses stay.
    :raise TopologyError: when the table is malformed.
    """
    iort = parse_iort(table, source)
    kept = [
        node for node in iort.nodes if not isinstance(node, RmrNode) or node.ranges[0][0] in keep
    ]
    return _laid_out(table, [_movable(table, node) for node in kept], source)


def with_its_groups(table: bytes, devices: Sequence[DeviceIds], source: str) -> bytes:
    """Return an IORT that leads devices to ITSes of their own.

    Each such ITS gets an ITS group, and each ID mapping to a group is split so that the devices'
    IDs lead to theirs. All other IDs lead where they led before.

    :param devices: without overlaps.
    :param source: the table's origin, for messages.
    :raise TopologyError: when the table is malformed.
    """
    iort = parse_iort(table, source)
    present = {its for node in iort.nodes if isinstance(node, ItsGroup) for its in node.its_ids}
    added = sorted({ids.its for ids in devices} - present)
    #: The new groups' keys by ITS, below all offsets.
    keys = {its: -1 - number for number, its in enumerate(added)}
    moved = [ids for ids in sorted(devices) if ids.its in keys]
    identifier = max((node.identifier for node in iort.nodes), default=0)
    groups = [
        _MovableNode(key, bytearray(_its_group(its, identifier - key)), {})
        for its, key in keys.items()
    ]
    nodes = [_split(table, iort, node, moved, keys) for node in iort.nodes]
    return _laid_out(table, [*groups, *nodes], source)


def _its_group(its: int, identifier: int) -> bytes:
    return _ITS_GROUP.pack(
        NodeType.ITS_GROUP, _ITS_GROUP.size, _ITS_GROUP_REVISION, identifier, 1, its
    )


def _split(
    table: bytes, iort: Iort, node: Node, devices: Sequence[DeviceIds], keys: dict[int, int]
) -> _MovableNode:
    """Return a node whose ID mappings to ITS groups lead the devices to their own groups."""
    movable = _movable(table, node)
    if not node.mappings:
        return movable
    start = node.mappings[0].offset - node.offset
    end = start + len(node.mappings) * _MAPPING.size
    records = bytearray()
    movable.references = {
        position: key for position, key in movable.references.items() if position < start
    }
    for mapping in node.mappings:
        leads_to_group = isinstance(iort.by_offset[mapping.target], ItsGroup)
        pieces = _pieces(mapping, devices if leads_to_group and not mapping.single else ())
        (flags,) = _U32.unpack_from(table, mapping.offset + _MAPPING.size - _U32.size)
        for first, last, its in pieces:
            movable.references[start + len(records) + _REFERENCE] = keys.get(its, mapping.target)
            offset = first - mapping.output_base
            records += _MAPPING.pack(mapping.input_base + offset, last - first, first, 0, flags)
    movable.data[start:end] = records
    _U16.pack_into(movable.data, _NODE_LENGTH, len(movable.data))
    _U32.pack_into(movable.data, _MAPPING_COUNT, len(records) // _MAPPING.size)
    return movable


def _pieces(mapping: IdMapping, devices: Sequence[DeviceIds]) -> Iterator[DeviceIds]:
    """Yield the output IDs of a mapping in pieces, each of one ITS; -1 is the mapping's own."""
    at, end = mapping.output_base, mapping.output_base + mapping.id_count
    for ids in devices:
        first, last = max(ids.first, at), min(ids.last, end)
        if first > last:
            continue
        if at < first:
            yield DeviceIds(at, first - 1, -1)
        yield DeviceIds(first, last, ids.its)
        at = last + 1
    if at <= end:
        yield DeviceIds(at, end, -1)


def _movable(table: bytes, node: Node) -> _MovableNode:
    (length,) = _U16.unpack_from(table, node.offset + _NODE_LENGTH)
    references = {
        mapping.offset + _REFERENCE - node.offset: mapping.target for mapping in node.mappings
    }
    if isinstance(node, Pmcg):
        references[_PMCG_REFERENCE] = node.reference
    data = bytearray(table[node.offset : node.offset + length])
    return _MovableNode(node.offset, data, references)


def _laid_out(table: bytes, nodes: Sequence[_MovableNode], source: str) -> bytes:
    """Return the table with other nodes."""
    (start,) = _U32.unpack_from(table, _FIRST_NODE)
    changed = bytearray(table[:start])
    places: dict[int, int] = {}
    for node in nodes:
        places[node.key] = len(changed)
        changed += node.data
    for node in nodes:
        for position, key in node.references.items():
            _U32.pack_into(changed, places[node.key] + position, places.get(key, key))
    _U32.pack_into(changed, _NODE_COUNT, len(nodes))
    return _finished(changed, source)


def _finished(table: bytearray, source: str) -> bytes:
    """Make a changed table acceptable to Linux, and check that our own reader parses it."""
    changed = newer(bytes(table))
    parse_iort(changed, f"{source}, changed")
    return changed
