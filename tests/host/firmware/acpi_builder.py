"""Build ACPI tables byte by byte, well formed unless a test breaks them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


def checksummed(data):
    """Return ``data`` with the right length and checksum."""
    data = bytearray(data)
    struct.pack_into("<I", data, 4, len(data))
    data[9] = 0
    data[9] = -sum(data) & 0xFF
    return bytes(data)


def resummed(data):
    """Return ``data`` with the right checksum; the length is not changed."""
    data = bytearray(data)
    data[9] = 0
    data[9] = -sum(data) & 0xFF
    return bytes(data)


def table(signature, body, revision=5):
    header = struct.pack(
        "<4sIBB6s8sI4sI", signature, 0, revision, 0, b"TESTS ", b"VMMMSI  ", 1, b"TEST", 1
    )
    return checksummed(header + body)


@dataclass
class TableNode:
    """A node; ``to`` has (input, count minus one, output, index of the target node, flags)."""

    type: int
    data: bytes
    to: list = field(default_factory=list)
    revision: int = 1
    identifier: int = 0

    @property
    def size(self):
        return 16 + len(self.data) + 20 * len(self.to)


def its_group(*ids):
    return TableNode(0, struct.pack(f"<I{len(ids)}I", len(ids), *ids), revision=1)


def named_component(name="\\_SB.DEV0", to=()):
    text = name.encode() + b"\0"
    text += b"\0" * (-(29 + len(text)) % 4)
    # 13 bytes of fields, then the name, padded so that the mappings are aligned.
    return TableNode(1, struct.pack("<IQB", 0, 0, 32) + text, list(to), revision=2)


def root_complex(*to, segment=0, revision=3, flags=0, ats=0):
    data = struct.pack("<IBHBIIBHB", 1, 0, 0, flags, ats, segment, 52, 0, 0)
    return TableNode(2, data if revision else data[:16], list(to), revision=revision)


def smmu_v2(*to, base=0x2B400000):
    return TableNode(3, struct.pack("<QQIIIIIII", base, 0x10000, 1, 0, 60, 0, 0, 0, 0), list(to))


def smmu_v3(*to, base=0x2B600000, revision=4, flags=0, gsivs=(1, 2, 3, 4), index=0, model=0):
    data = struct.pack("<QIIQIIIII", base, flags, 0, 0, model, *gsivs)
    data += struct.pack("<II", 0, index) if revision else b""
    return TableNode(4, data, list(to), revision=revision)


def pmcg(*to, reference=0, revision=1):
    data = struct.pack("<QII", 0x2B700000, 7, reference)
    return TableNode(
        5, data + (struct.pack("<Q", 0x2B710000) if revision else b""), list(to), revision
    )


def rmr(*ranges, to=()):
    at = 28 + 20 * len(to)
    data = struct.pack("<III", 1, len(ranges), at)
    node = TableNode(6, data, list(to), revision=3)
    node.tail = b"".join(struct.pack("<QQI", base, size, 0) for base, size in ranges)
    return node


def iwb(*to, name="\\_SB.IWB0"):
    return TableNode(
        7, struct.pack("<QH", 0x2B800000, 0) + name.encode() + b"\0", list(to), revision=0
    )


def iort(*nodes, revision=5, node_offset=48, gap=0):
    """Return an IORT of ``nodes``, ``gap`` bytes after the header."""
    offsets, at = [], node_offset + gap
    for node in nodes:
        offsets.append(at)
        at += node.size + len(getattr(node, "tail", b""))
    body = struct.pack("<III", len(nodes), node_offset + gap, 0) + b"\0" * gap
    for node in nodes:
        tail = getattr(node, "tail", b"")
        body += struct.pack(
            "<BHBIII",
            node.type,
            node.size + len(tail),
            node.revision,
            node.identifier,
            len(node.to),
            16 + len(node.data) if node.to else 0,
        )
        body += node.data
        for base, count, output, target, flags in node.to:
            body += struct.pack("<IIIII", base, count, output, offsets[target], flags)
        body += tail
    return table(b"IORT", body, revision)


def madt(*itses, extra=b"", revision=4):
    """Return a MADT with a GICD, then the ITSes (id, base), then ``extra``."""
    body = struct.pack("<II", 0, 0) + struct.pack("<BBHIQIBBH", 12, 24, 0, 0, 1 << 27, 0, 3, 0, 0)
    for number, base in itses:
        body += struct.pack("<BBHIQI", 15, 20, 0, number, base, 0)
    return table(b"APIC", body + extra, revision)


#: Structures of a MADT without an ITS: GICR, MSI frame of a GICv2m, GICv5 IRS.
OTHERS = b"".join(
    struct.pack("<BB", kind, size) + bytes(size - 2)
    for kind, size in ((14, 16), (13, 24), (28, 32))
)


def v5_its(translator, base):
    return struct.pack("<BBBBIQ", 29, 16, 0, 0, translator, base)


def v5_frame(translator, number, base):
    return struct.pack("<BBHIIIQ", 30, 24, 0, translator, number, 0, base)


#: Two GICv5 ITSes, the first with two translate frames.
GICV5 = (
    v5_its(7, 0x2F120000)
    + v5_frame(7, 1, 0x2F130000)
    + v5_frame(7, 0, 0x2F140000)
    + v5_its(9, 0x3F120000)
    + v5_frame(9, 4, 0x3F130000)
)
