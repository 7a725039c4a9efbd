"""The reader of captures as a fuzz target."""

from __future__ import annotations

import io

import zstandard
from host.files.tarballs import header, member, packed, pax

from vmm_msi.errors import InputError
from vmm_msi.host.files.archive import read_archive
from vmm_msi.host.files.pack import pack


def target(data: bytes) -> None:
    """Read ``data`` as a capture, and as the tar in a capture.

    :raise InputError: when it is neither.
    """
    failures = []
    for capture in (data, zstandard.compress(data)):
        try:
            tree = read_archive(io.BytesIO(capture), "fuzz")
            tree.read("/a/link")
            tree.names("/")
        except InputError as failure:
            failures.append(failure)
    if len(failures) == 2:
        raise failures[-1]


def seeds() -> list[bytes]:
    """Return captures and tars with every kind of member."""
    manifest = b'{"schema": 1, "tool": "x", "unreadable": {"/b/c": "no"}, "partial": {}}'
    capture = pack(
        {"/a/file": b"x" * 40, "/vmm-msi/manifest.json": manifest}, {"/a/link": "../b"}, []
    )
    members = [
        member(b"./a/", kind=b"5"),
        pax(b"path=a/link", b"linkpath=/a/link"),
        member(b"a", kind=b"2", target=b"b"),
        member(b"././@LongLink", b"long/name\0", b"L"),
        header(b"x", size=0),
        pax(b"comment=x", kind=b"g"),
        member(b"b", b"y" * 600, prefix=b"p"),
        member(b"c", kind=b"1", target=b"b"),
        member(b"vmm-msi/manifest.json", manifest),
    ]
    tar = b"".join(members) + bytes(1024)
    return [capture, packed(*members), tar, zstandard.ZstdDecompressor().decompress(capture)]
