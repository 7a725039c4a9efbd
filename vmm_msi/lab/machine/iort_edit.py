"""Copy an IORT with one change, to override the firmware's table.

Linux takes a table from the initial RAM file system when its OEM revision is higher than that of
the firmware's (``drivers/acpi/tables.c`` acpi_table_initrd_override,
``Documentation/admin-guide/acpi/initrd_table_override.rst``).
"""

from __future__ import annotations

import struct

from vmm_msi.host.firmware.iort import Pmcg, RmrNode, parse_iort

#: The path that Linux reads it from.
OVERRIDE_PATH = "kernel/firmware/acpi/IORT.aml"

_LENGTH, _CHECKSUM, _OEM_REVISION = 4, 9, 24  # ACPI 6.5, 5.2.6
_NODE_COUNT, _FIRST_NODE = 36, 40  # Arm DEN0049, IORT structure
_NODE_LENGTH = 1  # Arm DEN0049, IORT node format
_MEMORY_FLAGS, _CANWBS = 16 + 7, 1 << 2  # root complex node, memory access properties
_REFERENCE = 12  # of an ID mapping
_PMCG_REFERENCE = 28  # of a PMCG node
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


def without_rmrs(table: bytes, source: str) -> bytes:
    """Return an IORT without its RMR nodes.

    :param source: the table's origin, for messages.
    :raise TopologyError: when the table is malformed.
    """
    iort = parse_iort(table, source)
    kept = [node for node in iort.nodes if not isinstance(node, RmrNode)]
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
