"""Read a capture: the files of a host in one archive, a tar compressed with zstd.

It is read in memory and never extracted. It may come from an untrusted source: the constants here
bound memory and time, and members that a capture does not need are refused, not skipped.

The format is POSIX.1-2017, *pax*, "pax Interchange Format", with the long names of GNU tar, so that
a capture can be unpacked, inspected and packed again with ``tar --zstd``; compression is RFC 8878,
one frame.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, NoReturn

from vmm_msi.errors import TopologyError
from vmm_msi.host.files import MAX_FILE
from vmm_msi.host.files.capture_paths import MANIFEST
from vmm_msi.host.files.in_memory import MemoryTree
from vmm_msi.host.files.manifest import read_manifest
from vmm_msi.host.files.paths import MAX_PARTS, MAX_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: Limit of the tar in bytes: 2,000 devices with all their capabilities need half of it.
MAX_TOTAL = 128 << 20
#: Limit of the file in bytes.
MAX_COMPRESSED = 32 << 20
#: Limit of files, links and folders, implied folders included.
MAX_MEMBERS = 100_000
#: Limit in bytes of a header that gives the next member a longer name.
MAX_EXTRA = 4096
#: Limit of records in such a header; tar writes up to 15.
MAX_RECORDS = 64
#: Limit of the memory for decompression: that of every decoder (RFC 8878, 3.1.1.1.2).
MAX_WINDOW = 8 << 20

_BLOCK = 512
# A block of 4 bytes can stand for 128 KiB (RFC 8878, 3.1.1.2.3), so this is 8 MiB at most.
_FEED = 256

#: Extended headers: of POSIX for the next member and for all, of GNU for a long name and target.
_HEADER_TYPES = {b"x": "pax", b"g": "pax", b"L": "path", b"K": "linkpath"}
#: The records of an extended header that are used.
_USED_RECORDS = frozenset({"path", "linkpath", "size"})
_FILE, _LINK, _FOLDER = b"0", b"2", b"5"
_REFUSED_TYPES = {
    b"1": "a hard link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}
_ALLOWED = "a capture has only files, links and folders"
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_RECORD = re.compile(rb"(\d{1,5}) ([^=]{1,100})=")


def open_archive(path: Path) -> MemoryTree:
    """Read a capture.

    :raise TopologyError: when it cannot be read, is not a capture, or exceeds the limits.
    """
    try:
        with path.open("rb") as file:
            return read_archive(file, str(path))
    except OSError as failure:
        raise TopologyError(f"{path}: cannot be read: {failure.strerror or failure}") from failure


def read_archive(file: BinaryIO, source: str) -> MemoryTree:
    """Read a capture from an open file.

    :param source: the name of the file, for messages.
    :raise TopologyError: when it is not a capture, or exceeds the limits.
    """
    content = _Content(source)
    for member in _members(_Stream(file, source), source):
        content.add(member)
    unreadable: Mapping[str, str] = {}
    if MANIFEST in content.files:
        unreadable = read_manifest(content.files[MANIFEST], f"{source}: {MANIFEST[1:]}").unreadable
        for name in unreadable:
            content.count(name, "manifest entry")
    return MemoryTree(source, content.files, content.links, content.folders, unreadable)


class _Member(NamedTuple):
    path: str
    kind: bytes
    data: bytes
    target: str


class _Content:
    """The members of an archive, each path once and below folders only."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._kinds: dict[str, bytes] = {"": _FOLDER}
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.folders: list[str] = []

    def add(self, member: _Member) -> None:
        path = member.path
        known = self._kinds.get(path)
        if known is not None and not known == member.kind == _FOLDER:
            _refuse(self._source, path, "it occurs twice")
        self.count(path, "member")
        self._kinds[path] = member.kind
        if member.kind == _FILE:
            self.files[path] = member.data
        elif member.kind == _LINK:
            self.links[path] = member.target
        elif path and known is None:
            self.folders.append(path)

    def count(self, path: str, what: str) -> None:
        """Count a path and the folders above it.

        :param what: what has the path, for messages.
        """
        self._kinds.setdefault(path, _FILE)
        while path:
            path = path.rpartition("/")[0]
            known = self._kinds.setdefault(path, _FOLDER)
            if known != _FOLDER:
                _refuse(self._source, path, f"it is not a folder, but a {what} lies below it")
            if len(self._kinds) > MAX_MEMBERS:
                raise TopologyError(
                    f"{self._source}: more than {MAX_MEMBERS} files, links and folders, the limit "
                    "of a capture"
                )


class _Stream:
    """The tar, decompressed piece by piece."""

    def __init__(self, file: BinaryIO, source: str) -> None:
        from zstandard import ZstdDecompressor

        self._file = file
        self._source = source
        self._frame = ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
        self._input = memoryview(b"")
        self._compressed = 0
        self._total = 0
        self._buffer = bytearray()
        self._at = 0

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes.

        :raise TopologyError: when fewer are left.
        """
        if len(self._buffer) - self._at < size:
            del self._buffer[: self._at]
            self._at = 0
            while len(self._buffer) < size:
                self._buffer += self._more()
        taken = bytes(self._buffer[self._at : self._at + size])
        self._at += size
        return taken

    def rest(self) -> Iterator[bytes]:
        """Yield the remaining bytes, up to the end of the file."""
        yield bytes(self._buffer[self._at :])
        while not self._frame.eof:
            yield self._more()
        if self._frame.unused_data or len(self._input) or self._file.read(1):
            raise TopologyError(f"{self._source}: data after its end; a capture is one zstd frame")

    def _more(self) -> bytes:
        """Decompress a bit more."""
        from zstandard import ZstdError

        if self._frame.eof:
            self._truncated()
        if not len(self._input):
            self._input = memoryview(self._file.read(1 << 16))
            self._compressed += len(self._input)
            if not len(self._input):
                self._truncated()
            if self._compressed > MAX_COMPRESSED:
                raise TopologyError(
                    f"{self._source}: more than {MAX_COMPRESSED} bytes, the limit of a capture"
                )
        feed, self._input = self._input[:_FEED], self._input[_FEED:]
        try:
            data = self._frame.decompress(feed)
        except ZstdError as failure:
            reason = str(failure).removeprefix("zstd decompressor error: ")
            raise TopologyError(
                f"{self._source}: cannot be decompressed: {reason}; a capture is a tar compressed "
                "with zstd, as vmm-msi topology capture writes it"
            ) from failure
        self._total += len(data)
        if self._total > MAX_TOTAL:
            raise TopologyError(
                f"{self._source}: more than {MAX_TOTAL} bytes decompressed, the limit of a capture"
            )
        return data

    def _truncated(self) -> NoReturn:
        raise TopologyError(f"{self._source}: truncated; copy it again")


def _members(stream: _Stream, source: str) -> Iterator[_Member]:
    extra: dict[str, bytes] = {}
    #: The extended headers before the next member, and whether there was one for all.
    headers: set[bytes] = set()
    has_global = False
    while any(block := stream.take(_BLOCK)):
        header = _header(block, extra, source)
        name, kind, size = header.name, header.kind, header.size
        if kind in _HEADER_TYPES:
            if size > MAX_EXTRA:
                _refuse(
                    source, name, f"its extended header has {size} bytes; the limit is {MAX_EXTRA}"
                )
            if kind in headers or (kind == b"g" and has_global):
                _refuse(source, name, "it has two extended headers of one kind")
            headers.add(kind)
            has_global |= kind == b"g"
            data = _padded(stream, size)
            if kind == b"x":
                extra |= _records(data, name, source)
            elif kind != b"g":
                extra[_HEADER_TYPES[kind]] = data.rstrip(b"\0")
            continue
        if kind not in {_FILE, _LINK, _FOLDER}:
            what = _REFUSED_TYPES.get(kind, f"of type {kind.decode('latin-1')!r}")
            _refuse(source, name, f"it is {what}; {_ALLOWED}")
        if kind != _FILE and size:
            _refuse(source, name, f"it is not a file, but has a size of {size}")
        if size > MAX_FILE:
            _refuse(source, name, f"it has {size} bytes; the limit is {MAX_FILE}")
        path = _plain(name, source, folder=kind == _FOLDER)
        target = ""
        if kind == _LINK:
            target = _text(header.target, path, source)
            if not target:
                _refuse(source, path, "it is a link without a target")
        yield _Member(path, kind, _padded(stream, size), target)
        extra = {}
        headers.clear()
    for part in stream.rest():
        if part.strip(b"\0"):
            raise TopologyError(f"{source}: data after the end of its tar")


class _Header(NamedTuple):
    name: bytes
    kind: bytes
    size: int
    target: bytes


def _header(block: bytes, extra: Mapping[str, bytes], source: str) -> _Header:
    """Parse a header (*pax*, "ustar Interchange Format").

    :param extra: the values that extended headers before it give.
    """
    is_ustar = block[257:262] == b"ustar"
    if not is_ustar or _octal(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise TopologyError(f"{source}: not a tar archive, or damaged")
    name = _string(block[:100])
    if block[262] == 0 and block[345]:  # POSIX; GNU tar has times at that place
        name = _string(block[345:500]) + b"/" + name
    kind = block[156:157].replace(b"\0", _FILE)
    size = _octal(block[124:136])
    target = _string(block[157:257])
    if kind not in _HEADER_TYPES:
        name = extra.get("path", name)
        target = extra.get("linkpath", target)
        if "size" in extra:
            size = int(extra["size"]) if re.fullmatch(rb"\d{1,12}", extra["size"]) else None
    if size is None:
        _refuse(source, name, "its size is not a number")
    return _Header(name, kind, size, target)


def _records(data: bytes, name: bytes, source: str) -> dict[str, bytes]:
    """Parse an extended header: lines of ``LENGTH KEY=VALUE``."""
    records: dict[str, bytes] = {}
    at = count = 0
    while at < len(data):
        count += 1
        if count > MAX_RECORDS:
            _refuse(source, name, f"its extended header has more than {MAX_RECORDS} records")
        match = _RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1] != ord("\n"):
            _refuse(source, name, "its extended header is malformed")
        key = match[2].decode("latin-1")
        if key.startswith("GNU.sparse"):
            _refuse(source, name, f"it is a sparse file; {_ALLOWED}")
        if key in _USED_RECORDS:
            records[key] = data[match.end() : end - 1]
        at = end
    return records


def _padded(stream: _Stream, size: int) -> bytes:
    data = stream.take(size)
    stream.take(-size % _BLOCK)
    return data


def _string(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _octal(field: bytes) -> int | None:
    match = _OCTAL.fullmatch(field)
    return None if match is None else int(match[1] or b"0", 8)


def _plain(name: bytes, source: str, *, folder: bool) -> str:
    """Return the path on the host of a member, by its name; that of the root is empty."""
    text = _text(name, name, source).removeprefix("./")
    if folder:
        text = text.removesuffix("/")
        if text in {"", "."}:
            return ""
    if any(part in {"", ".", ".."} for part in text.split("/")):
        _refuse(
            source, name, "its name is not a plain path: use one from the root, without the first "
            "/ and without //, . and .."
        )  # fmt: skip
    return f"/{text}"


def _text(value: bytes, name: bytes | str, source: str) -> str:
    if len(value) > MAX_PATH:
        _refuse(source, name[:40], f"a path of {len(value)} bytes; the limit is {MAX_PATH}")
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable():
        _refuse(source, name, "a path in it is not printable")
    if text.count("/") >= MAX_PARTS:
        _refuse(
            source,
            name,
            f"a path of {text.count('/') + 1} names; the limit is {MAX_PARTS}",
        )
    return text


def _refuse(source: str, name: bytes | str, reason: str) -> NoReturn:
    shown = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name[1:]
    raise TopologyError(f"{source}: member {shown!r}: {reason}")
