"""Read the flattened format of a device tree: its header and the tokens of its structure block.

Devicetree Specification v0.4, chapter 5. The checks are those of libfdt ``fdt_check.c``
fdt_check_full, so that a blob that passes them can be read within its bounds.
"""

from __future__ import annotations

import struct

from vmm_msi.errors import TopologyError

#: Magic number of a device tree blob.
MAGIC = 0xD00DFEED
#: Version of the format since 2007, the first whose header has the size of the structure block.
VERSION = 17
#: Limit of a blob in bytes: Linux ``arch/arm64/include/asm/boot.h`` MAX_FDT_SIZE.
MAX_SIZE = 2 << 20
#: Limit of a property's name in characters; the specification allows 31.
MAX_NAME = 255
#: Magic number, total size; offsets of structure, strings and reservation block; version, oldest
#: compatible version; the boot CPU; sizes of strings and structure block.
HEADER = struct.Struct(">10I")
BEGIN_NODE, END_NODE, PROPERTY, NOP, END = 1, 2, 3, 4, 9

#: Address and size of reserved memory.
_RESERVATION = struct.Struct(">QQ")


def read_nodes(data: bytes, source: str) -> list[tuple[int, str, dict[str, bytes]]]:
    """Return depth, name and properties of the nodes of a blob, in its order.

    :param data: the blob; bytes after its total size are ignored.
    :param source: its file, for messages.
    :raise TopologyError: when it is malformed or larger than Linux accepts.
    """
    start, size, names_start, names_size = _check_header(data, source)
    block = data[start : start + size]
    cells = struct.unpack_from(f">{size // 4}I", block)
    names = _Names(data[names_start : names_start + names_size], names_start, source)
    nodes: list[tuple[int, str, dict[str, bytes]]] = []
    properties: dict[str, bytes] = {}
    index = depth = 0
    try:
        while (token := cells[index]) != END:
            if token == PROPERTY:
                first = 4 * index + 12
                end = first + cells[index + 1]
                # If a node has two of one name, the first counts: of_find_property.
                properties.setdefault(names[cells[index + 2]], block[first:end])
                index = end + 3 >> 2
            elif token == BEGIN_NODE:
                end = block.index(b"\0", 4 * index + 4)
                name = block[4 * index + 4 : end].decode("utf-8", "replace")
                if name and not depth:
                    raise _invalid(source, start + 4 * index, "the root node has a name")
                properties = {}
                nodes.append((depth, name, properties))
                depth += 1
                index = (end >> 2) + 1
            elif token == END_NODE and depth:
                # Properties after a subnode do not count: drivers/of/fdt.c populate_properties.
                properties = {}
                depth -= 1
                index += 1
                if not depth:
                    token = cells[index]
                    break
            elif token == NOP:
                index += 1
            else:
                break
    except (IndexError, ValueError):
        raise _invalid(source, start + size, "the structure block ends within the tree") from None
    if token != END or depth:
        raise _invalid(source, start + 4 * index, f"token {token:#x} is out of place")
    return nodes


class _Names(dict[int, str]):
    """The names of properties by their offset in the strings block, decoded when first used."""

    def __init__(self, block: bytes, start: int, source: str) -> None:
        super().__init__()
        self._block, self._start, self._source = block, start, source
        for name in block.split(b"\0"):
            if len(name) > MAX_NAME:
                raise TopologyError(
                    f"{source}: offset {start:#x}: a property name of more than {MAX_NAME} "
                    "characters"
                )
            start += len(name) + 1

    def __missing__(self, offset: int) -> str:
        end = self._block.find(b"\0", offset)
        try:
            if end >= 0:
                return self.setdefault(offset, self._block[offset:end].decode())
            reason = "a property name does not end within the strings block"
        except UnicodeError:
            reason = "a property name is not UTF-8"
        raise _invalid(self._source, self._start + offset, reason)


def _invalid(source: str, offset: int, reason: str) -> TopologyError:
    """Return the error about ``offset`` of a blob."""
    return TopologyError(f"{source}: not a valid device tree: offset {offset:#x}: {reason}")


def _check_header(data: bytes, source: str) -> tuple[int, int, int, int]:
    """Check a header: libfdt ``fdt.c`` fdt_check_header.

    :return: offset and size of the structure block, offset and size of the strings block.
    """
    if len(data) > MAX_SIZE:
        raise TopologyError(f"{source}: larger than {MAX_SIZE} bytes, the limit of Linux")
    if len(data) < HEADER.size:
        raise TopologyError(
            f"{source}: truncated at {len(data)} bytes; a device tree's header has {HEADER.size}"
        )
    fields = HEADER.unpack_from(data)
    magic, total, structure, strings, reservations, version, compatible = fields[:7]
    strings_size, structure_size = fields[8:]
    if magic != MAGIC:
        raise TopologyError(f"{source}: offset 0x0: magic {magic:#x}, not {MAGIC:#x}")
    if total > len(data):
        raise TopologyError(
            f"{source}: offset 0x4: truncated: total size {total}, but the file has {len(data)} "
            "bytes"
        )
    if version < VERSION:
        raise TopologyError(
            f"{source}: offset 0x14: version {version}; the oldest supported one is {VERSION}"
        )
    if compatible > VERSION:
        raise _invalid(source, 0x18, f"it requires a reader of version {compatible}")
    for offset, name, start, size in (
        (0x08, "structure", structure, structure_size),
        (0x0C, "strings", strings, strings_size),
        (0x10, "memory reservation", reservations, 0),
    ):
        if start < HEADER.size or start + size > total:
            reason = f"the {name} block is not within the {total} bytes of the tree"
            raise _invalid(source, offset, reason)
    _check_reservations(data[:total], reservations, source)
    return structure, structure_size, strings, strings_size


def _check_reservations(data: bytes, offset: int, source: str) -> None:
    """Check that the memory reservation block ends: libfdt ``fdt_ro.c`` fdt_num_mem_rsv."""
    size = 1
    while size:
        if offset + _RESERVATION.size > len(data):
            raise _invalid(source, offset, "the memory reservation block does not end")
        _address, size = _RESERVATION.unpack_from(data, offset)
        offset += _RESERVATION.size
