"""Pack a capture: the same files always give the same bytes."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.host.files import MAX_FILE
from vmm_msi.host.files.archive import MAX_COMPRESSED, MAX_MEMBERS, MAX_TOTAL
from vmm_msi.host.files.paths import MAX_PARTS, MAX_PATH

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# On 100 devices level 9 takes 30 ms; 19 takes 20 times as long for a tenth less.
_LEVEL = 9
_BLOCK = 512


def pack(files: Mapping[str, bytes], links: Mapping[str, str], folders: Iterable[str]) -> bytes:
    """Return the archive of files, links and folders, by absolute, plain paths.

    Members are sorted by path and have no owner, time or mode of the host.

    :raise TopologyError: when it exceeds the limits of :mod:`vmm_msi.host.files.archive`.
    """
    from zstandard import ZstdCompressor

    members: dict[str, bytes | str | None] = {**dict.fromkeys(folders), **links, **files}
    packed = bytearray()
    for path in sorted(members):
        packed += _member(path, members[path])
    packed += bytes(2 * _BLOCK)
    archive = ZstdCompressor(level=_LEVEL, write_checksum=True).compress(bytes(packed))
    if len(packed) > MAX_TOTAL or len(members) > MAX_MEMBERS or len(archive) > MAX_COMPRESSED:
        raise TopologyError(
            f"packing a capture: {len(members)} files with {len(packed)} bytes exceed the limit "
            f"of {MAX_MEMBERS} files or {MAX_TOTAL} bytes"
        )
    return archive


def _member(path: str, value: bytes | str | None) -> bytes:
    data = value if isinstance(value, bytes) else b""
    target = value if isinstance(value, str) else ""
    for text in (path[1:], target):
        if len(text.encode("utf-8", "replace")) > MAX_PATH or not text.isprintable():
            raise TopologyError(
                f"packing {path}: a path in it is not printable or is longer than {MAX_PATH} bytes"
            )
        if text.count("/") >= MAX_PARTS:
            raise TopologyError(f"packing {path}: a path in it has more than {MAX_PARTS} names")
    if len(data) > MAX_FILE:
        raise TopologyError(f"packing {path}: larger than {MAX_FILE} bytes")
    member = tarfile.TarInfo(path[1:])
    member.mode = 0o644
    if value is None:
        member.type, member.mode = tarfile.DIRTYPE, 0o755
    elif isinstance(value, str):
        member.type, member.mode, member.linkname = tarfile.SYMTYPE, 0o777, value
    member.size = len(data)
    header = member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
    return header + data + bytes(-len(data) % _BLOCK)
