"""Build captures byte by byte, well formed unless a test breaks them."""

from __future__ import annotations

import zstandard


def header(name, kind=b"0", size=0, target=b"", prefix=b"", magic=b"ustar\x0000"):
    """Return a header with the right checksum."""
    size = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(512)
    for at, field in ((0, name), (124, size), (156, kind), (157, target), (257, magic)):
        block[at : at + len(field)] = field
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name, data=b"", kind=b"0", **more):
    return header(name, kind, len(data), **more) + data + bytes(-len(data) % 512)


def pax(*records, name=b"pax", kind=b"x"):
    """Return an extended header of ``KEY=VALUE`` records."""
    data = b""
    for record in records:
        size = len(record) + 3
        while len(b"%d %s\n" % (size, record)) != size:
            size += 1
        data += b"%d %s\n" % (size, record)
    return member(name, data, kind)


def packed(*members, end=bytes(1024), **parameters):
    """Return the archive of members."""
    return zstandard.ZstdCompressor(**parameters).compress(b"".join(members) + end)
