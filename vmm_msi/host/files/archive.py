"""A capture: the files of a host in one archive, a tar compressed with zstd.

It is read in memory and nothing is ever extracted. It may come from anybody: memory and time are
bounded by the constants here, and what a capture has no use for is refused, not skipped.

The form is POSIX.1-2017, *pax*, "pax Interchange Format", with the long names of GNU tar, so that
a capture can be unpacked, looked at and packed again with ``tar --zstd``; compression is RFC 8878,
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
from vmm_msi.host.files.paths import MAX_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: Bytes of the tar: 2,000 devices with all their capabilities have half of them.
MAX_TOTAL = 128 << 20
#: Bytes of the file.
MAX_COMPRESSED = 32 << 20
#: Files, links and folders, those that are only implied among them.
MAX_MEMBERS = 100_000
#: Bytes of a header that gives the next member a longer name.
MAX_EXTRA = 4096
#: Memory that decompression may ask for: what every decoder should have (RFC 8878, 3.1.1.1.2).
MAX_WINDOW = 8 << 20

_BLOCK = 512
# A block of 4 bytes can stand for 128 KiB (RFC 8878, 3.1.1.2.3), so this is 8 MiB at most.
_FEED = 256

_HEADER_TYPES = {b"x": "pax", b"g": "pax", b"L": "path", b"K": "linkpath"}
_FILE, _LINK, _FOLDER = b"0", b"2", b"5"
_REFUSED_TYPES = {
    b"1": "a hard link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}
_ALONE = "a capture has files, links and folders alone"
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_RECORD = re.compile(rb"(\d{1,5}) ([^=]{1,100})=")


def open_archive(path: Path) -> MemoryTree:
    """Read a capture.

    :raise TopologyError: when it cannot be read, is no capture, or is larger than one can be.
    """
    try:
        with path.open("rb") as file:
            return read_archive(file, str(path))
    except OSError as failure:
        raise TopologyError(f"{path}: cannot be read: {failure.strerror or failure}") from failure


def read_archive(file: BinaryIO, source: str) -> MemoryTree:
    """Read a capture from an open file.

    :param source: where it is from, for messages.
    :raise TopologyError: when it is no capture, or larger than one can be.
    """
    content = _Content(source)
    for member in _members(_Stream(file, source), source):
        content.add(member)
    unreadable: Mapping[str, str] = {}
    if MANIFEST in content.files:
        unreadable = read_manifest(content.files[MANIFEST], f"{source}: {MANIFEST[1:]}").unreadable
        for name in unreadable:
            content.place(name, "manifest")
    return MemoryTree(source, content.files, content.links, content.folders, unreadable)


class _Member(NamedTuple):
    path: str
    kind: bytes
    data: bytes
    target: str


class _Content:
    """What was found, each path once and below folders only."""

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
            _refuse(self._source, path, "it is there twice")
        self.place(path, "member")
        self._kinds[path] = member.kind
        if member.kind == _FILE:
            self.files[path] = member.data
        elif member.kind == _LINK:
            self.links[path] = member.target
        elif path and known is None:
            self.folders.append(path)

    def place(self, path: str, what: str) -> None:
        """Count a path and the folders above it."""
        self._kinds.setdefault(path, _FILE)
        while path:
            path = path.rpartition("/")[0]
            known = self._kinds.setdefault(path, _FOLDER)
            if known != _FOLDER:
                _refuse(self._source, path, f"it is no folder, and a {what} lies below it")
            if len(self._kinds) > MAX_MEMBERS:
                raise TopologyError(
                    f"{self._source}: it has more than {MAX_MEMBERS} files, links and folders; "
                    "a capture has less"
                )


class _Stream:
    """The tar, decompressed as far as it is asked for."""

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

        :raise TopologyError: when there are less.
        """
        if len(self._buffer) - self._at < size:
            del self._buffer[: self._at]
            self._at = 0
            while len(self._buffer) < size:
                self._buffer += self._more()
        found = bytes(self._buffer[self._at : self._at + size])
        self._at += size
        return found

    def rest(self) -> Iterator[bytes]:
        """Yield what is left, up to the end of the file."""
        yield bytes(self._buffer[self._at :])
        while not self._frame.eof:
            yield self._more()
        if self._frame.unused_data or len(self._input) or self._file.read(1):
            raise TopologyError(
                f"{self._source}: something follows its end; a capture is one zstd frame"
            )

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
                    f"{self._source}: it has more than {MAX_COMPRESSED} bytes; a capture has less"
                )
        feed, self._input = self._input[:_FEED], self._input[_FEED:]
        try:
            found = self._frame.decompress(feed)
        except ZstdError as failure:
            reason = str(failure).removeprefix("zstd decompressor error: ")
            raise TopologyError(
                f"{self._source}: it cannot be decompressed: {reason}; a capture is a tar that is "
                "compressed with zstd, as vmm-msi topology capture writes it"
            ) from failure
        self._total += len(found)
        if self._total > MAX_TOTAL:
            raise TopologyError(
                f"{self._source}: decompressed it has more than {MAX_TOTAL} bytes; a capture has "
                "less"
            )
        return found

    def _truncated(self) -> NoReturn:
        raise TopologyError(f"{self._source}: it ends too early; copy it again")


def _members(stream: _Stream, source: str) -> Iterator[_Member]:
    extra: dict[str, bytes] = {}
    while any(block := stream.take(_BLOCK)):
        header = _header(block, extra, source)
        name, kind, size = header.name, header.kind, header.size
        if kind in _HEADER_TYPES:
            if size > MAX_EXTRA:
                _refuse(
                    source, name, f"its extended header has {size} bytes; {MAX_EXTRA} is the most"
                )
            data = _padded(stream, size)
            if kind == b"x":
                extra |= _records(data, name, source)
            elif kind != b"g":
                extra[_HEADER_TYPES[kind]] = data.rstrip(b"\0")
            continue
        if kind not in {_FILE, _LINK, _FOLDER}:
            what = _REFUSED_TYPES.get(kind, f"of type {kind.decode('latin-1')!r}")
            _refuse(source, name, f"it is {what}; {_ALONE}")
        if kind != _FILE and size:
            _refuse(source, name, f"it is no file and has {size} bytes")
        if size > MAX_FILE:
            _refuse(source, name, f"it has {size} bytes; {MAX_FILE} is the most")
        path = _plain(name, source, folder=kind == _FOLDER)
        target = ""
        if kind == _LINK:
            target = _text(header.target, path, source)
            if not target:
                _refuse(source, path, "it is a link that leads nowhere")
        yield _Member(path, kind, _padded(stream, size), target)
        extra = {}
    for part in stream.rest():
        if part.strip(b"\0"):
            raise TopologyError(f"{source}: something follows the end of its tar")


class _Header(NamedTuple):
    name: bytes
    kind: bytes
    size: int
    target: bytes


def _header(block: bytes, extra: Mapping[str, bytes], source: str) -> _Header:
    """Take a header apart (*pax*, "ustar Interchange Format").

    :param extra: what headers before it say of it.
    """
    ours = block[257:262] == b"ustar"
    if not ours or _octal(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise TopologyError(f"{source}: there is no tar in it, or it is damaged")
    name = _string(block[:100])
    if block[262] == 0 and block[345]:  # POSIX; GNU has times in the place of the prefix
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
        _refuse(source, name, "its size is no number")
    return _Header(name, kind, size, target)


def _records(data: bytes, name: bytes, source: str) -> dict[str, bytes]:
    """Take an extended header apart: lines of ``LENGTH KEY=VALUE``."""
    found: dict[str, bytes] = {}
    at = 0
    while at < len(data):
        match = _RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1] != ord("\n"):
            _refuse(source, name, "its extended header is malformed")
        key = match[2].decode("latin-1")
        if key.startswith("GNU.sparse"):
            _refuse(source, name, f"it is a sparse file; {_ALONE}")
        found[key] = data[match.end() : end - 1]
        at = end
    return found


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
    """Return the path on the host that a member's name stands for; that of the root is empty."""
    text = _text(name, name, source).removeprefix("./")
    if folder:
        text = text.removesuffix("/")
        if text in {"", "."}:
            return ""
    if any(part in {"", ".", ".."} for part in text.split("/")):
        _refuse(
            source, name, "its name is no plain path: valid is one without //, . and .., from the "
            "root on and without the first /"
        )  # fmt: skip
    return f"/{text}"


def _text(value: bytes, name: bytes | str, source: str) -> str:
    if len(value) > MAX_PATH:
        _refuse(source, name[:40], f"a path of it has {len(value)} bytes; {MAX_PATH} is the most")
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable():
        _refuse(source, name, "a path of it is no plain text")
    return text


def _refuse(source: str, name: bytes | str, reason: str) -> NoReturn:
    shown = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name[1:]
    raise TopologyError(f"{source}: member {shown!r}: {reason}")
