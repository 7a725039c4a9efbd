"""Copy an IORT with one change, to override the firmware's table.

Linux takes a table from the initial RAM file system when its OEM revision is higher than that of
the firmware's (``drivers/acpi/tables.c`` acpi_table_initrd_override,
``Documentation/admin-guide/acpi/initrd_table_override.rst``).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmm_msi.errors import LabError
from vmm_msi.host.firmware.iort import Pmcg, RmrNode, parse_iort

if TYPE_CHECKING:
    from collections.abc import Collection

#: The path that Linux reads it from.
OVERRIDE_PATH = "kernel/firmware/acpi/IORT.aml"

_LENGTH, _CHECKSUM, _OEM_REVISION = 4, 9, 24  # ACPI 6.5, 5.2.6
_NODE_COUNT, _FIRST_NODE = 36, 40  # Arm DEN0049, IORT structure
_NODE_LENGTH = 1  # Arm DEN0049, IORT node format
_MEMORY_FLAGS, _CANWBS = 16 + 7, 1 << 2  # root complex node, memory access properties
_REFERENCE = 12  # of an ID mapping
_PMCG_REFERENCE = 28  # of a PMCG node
_RMR_RANGES = 24  # of an RMR node: the offset of its ranges
_RMR_RANGE = struct.Struct("<QQ")
_MAPPING = struct.Struct("<III")  # input base, number of IDs minus one, output base
_IDENTIFIER = 4  # of a node
_U32 = struct.Struct("<I")


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
    (length,) = struct.unpack_from("<H", table, node.offset + _NODE_LENGTH)
    copy = bytearray(table[node.offset : node.offset + length])
    (ranges,) = _U32.unpack_from(copy, _RMR_RANGES)
    _RMR_RANGE.pack_into(copy, ranges, base, size)
    _MAPPING.pack_into(copy, mapping.offset - node.offset, 0, 0, stream_id)
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
    (start,) = _U32.unpack_from(table, _FIRST_NODE)
    moved: dict[int, int] = {}
    changed = bytearray(table[:start])
    for node in kept:
        (length,) = struct.unpack_from("<H", table, node.offset + _NODE_LENGTH)
        moved[node.offset] = len(changed)
        changed += table[node.offset : node.offset + length]
    for node in kept:
        places = {mapping.offset + _REFERENCE: mapping.target for mapping in node.mappings}
        if isinstance(node, Pmcg):
            places[node.offset + _PMCG_REFERENCE] = node.reference
        for place, target in places.items():
            position = place - node.offset + moved[node.offset]
            _U32.pack_into(changed, position, moved.get(target, target))
    _U32.pack_into(changed, _NODE_COUNT, len(kept))
    return _finished(changed, source)


def _finished(table: bytearray, source: str) -> bytes:
    """Make a changed table acceptable to Linux, and check that our own reader parses it."""
    (revision,) = _U32.unpack_from(table, _OEM_REVISION)
    _U32.pack_into(table, _OEM_REVISION, (revision + 1) & 0xFFFFFFFF)
    _U32.pack_into(table, _LENGTH, len(table))
    table[_CHECKSUM] = (table[_CHECKSUM] - sum(table)) & 0xFF
    parse_iort(bytes(table), f"{source}, changed")
    return bytes(table)
