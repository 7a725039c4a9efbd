"""Read a device tree from a folder of nodes and properties, such as ``/proc/device-tree``.

Every user can read the folder, but only root the blob ``/sys/firmware/fdt``. The nodes come in the
order of their names, not in that of the blob.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.host.files import UnreadableError
from vmm_msi.host.firmware.dt_nodes import MAX_DEPTH
from vmm_msi.host.firmware.fdt import (
    BEGIN_NODE,
    END,
    END_NODE,
    HEADER,
    MAGIC,
    MAX_SIZE,
    PROPERTY,
    VERSION,
)

if TYPE_CHECKING:
    from vmm_msi.host.files import HostTree

_RESERVATIONS = bytes(16)


def blob_of(tree: HostTree, path: str) -> bytes | None:
    """Return the blob of the tree in a folder: Devicetree Specification v0.4, chapter 5.

    Properties that cannot be read are left out.

    :return: None if the folder does not exist.
    :raise TopologyError: when it is deeper or larger than the limits of a device tree.
    """
    if not tree.names(path):
        return None
    flat = _Flattener(tree)
    flat.node(path, "", 0)
    flat.add(struct.pack(">I", END))
    names = b"".join(flat.names)
    structure = b"".join(flat.parts)
    start = HEADER.size + len(_RESERVATIONS)
    strings = start + len(structure)
    header = HEADER.pack(
        MAGIC,
        strings + len(names),
        start,
        strings,
        HEADER.size,
        VERSION,
        16,
        0,
        len(names),
        len(structure),
    )
    return header + _RESERVATIONS + structure + names


class _Flattener:
    def __init__(self, tree: HostTree) -> None:
        self.tree = tree
        self.parts: list[bytes] = []
        self.names: list[bytes] = []
        self.name_at: dict[bytes, int] = {}
        self.names_size = 0
        self.size = 0

    def node(self, path: str, name: str, depth: int) -> None:
        """Add a node; its properties come before the nodes below it."""
        if depth > MAX_DEPTH:
            self._fail(f"{path} is more than {MAX_DEPTH} nodes deep")
        self.add(struct.pack(">I", BEGIN_NODE) + _padded(name.encode() + b"\0"))
        below = []
        for child in self.tree.names(path):
            try:
                value = self.tree.read(f"{path}/{child}", MAX_SIZE)
            except UnreadableError:
                continue
            if value is None:
                below.append(child)
            else:
                self._property(child.encode(), value)
        for child in below:
            self.node(f"{path}/{child}", child, depth + 1)
        self.add(struct.pack(">I", END_NODE))

    def add(self, part: bytes) -> None:
        """Add a part of the structure block."""
        self.parts.append(part)
        self.size += len(part)
        if self.size > MAX_SIZE:
            self._fail(f"larger than {MAX_SIZE} bytes")

    def _property(self, name: bytes, value: bytes) -> None:
        at = self.name_at.get(name)
        if at is None:
            at = self.name_at[name] = self.names_size
            self.names.append(name + b"\0")
            self.names_size += len(name) + 1
        self.add(struct.pack(">III", PROPERTY, len(value), at) + _padded(value))

    def _fail(self, message: str) -> None:
        raise TopologyError(f"reading the device tree of {self.tree.source}: {message}")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
