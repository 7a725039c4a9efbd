"""Taking a host's files into a capture."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from vmm_msi.host.files import UnreadableError, redact, text
from vmm_msi.host.files.capture_list import SOURCES, CaptureKind
from vmm_msi.host.files.capture_paths import KERNEL_LOG, MANIFEST, PAGE_SIZE
from vmm_msi.host.files.kernel_log import KMSG, kernel_log
from vmm_msi.host.files.pack import pack
from vmm_msi.host.files.paths import walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmm_msi.host.files import HostTree
    from vmm_msi.host.files.capture_list import Source

    #: What is not in the host's files, by its path in the capture, or why it could not be had.
    Made = Mapping[str, bytes | UnreadableError]

_RELEASE = "/proc/sys/kernel/osrelease"
_SHORT_CONFIG = 64


@dataclass
class Capture:
    """What was taken.

    :param files: what each has.
    :param links: where each leads to.
    :param folders: those that may be empty.
    :param unreadable: why a file could not be read, for those that could not.
    :param partial: why there is less of a file than the host has.
    :param taken: how many files and links each of :data:`SOURCES` gave, and how many bytes.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: dict[str, None] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    partial: dict[str, str] = field(default_factory=dict)
    taken: dict[Source, tuple[int, int]] = field(default_factory=dict)

    def packed(self, tool: str) -> bytes:
        """Return the archive.

        :param tool: what makes it, with its version.
        :raise TopologyError: when it would be larger than one that is read.
        """
        import msgspec

        from vmm_msi.host.files.manifest import SCHEMA, Manifest

        manifest = Manifest(SCHEMA, tool, self.unreadable, self.partial)
        document = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"))
        files = {**self.files, MANIFEST: document + b"\n"}
        return pack(files, self.links, self.folders)


def made_here(tree: HostTree) -> dict[str, bytes | UnreadableError]:
    """Return what this machine tells by other ways than files."""
    made: dict[str, bytes | UnreadableError] = {
        PAGE_SIZE: f"{os.sysconf('SC_PAGE_SIZE')}\n".encode()
    }
    try:
        made[KERNEL_LOG] = "".join(f"{line}\n" for line in kernel_log(tree)).encode()
    except UnreadableError as failure:
        made[KERNEL_LOG] = UnreadableError(tree.source, KERNEL_LOG, f"{KMSG}: {failure.reason}")
    return made


def capture(tree: HostTree, made: Made | None = None) -> Capture:
    """Take all of :data:`SOURCES` that a host has.

    What it does not have is left out; what cannot be read is recorded.
    """
    taker = _Taker(tree, made or {})
    for source in SOURCES:
        taker.take(source)
    return taker.found


class _Taker:
    def __init__(self, tree: HostTree, made: Made) -> None:
        self._tree = tree
        self._made = made
        self._links: dict[str, str | None] = {}
        self._pid: str | None = None
        self.found = Capture()
        try:
            self._release = text(tree, _RELEASE)
        except UnreadableError:
            self._release = None

    def take(self, source: Source) -> None:
        """Take what a source names."""
        count, size = self.found.taken.get(source, (0, 0))
        for path in self._paths(source):
            try:
                taken = self._take(source, path)
            except UnreadableError as failure:
                self._unreadable(failure.path, failure.reason)
            except ValueError as failure:
                self._unreadable(self._plain(path), str(failure))
            else:
                count += taken is not None
                size += taken or 0
        self.found.taken[source] = (count, size)

    def _take(self, source: Source, path: str) -> int | None:
        """Take one path and return how many bytes it has; None where there is no such thing."""
        if source.kind is CaptureKind.LINK:
            return self._take_link(path)
        place = self._plain(path)
        if source.kind in {CaptureKind.FILE_EXISTS, CaptureKind.FOLDER_EXISTS}:
            if not self._tree.exists(place):
                return None
            if source.kind is CaptureKind.FOLDER_EXISTS:
                self.found.folders[place] = None
                data = b""
            else:
                data = self.found.files.setdefault(place, b"")
        else:
            read = self._config if source.kind is CaptureKind.CONFIG_SPACE else self._file
            found = read(place)
            if found is None:
                return None
            data = source.cut(found) if source.cut is not None else found
            self.found.files[place] = data
        self._add_links(path)
        if path.endswith(".pid"):
            pid = data.decode("ascii", "replace").strip()
            self._pid = pid if pid.isascii() and pid.isdigit() else None
        return len(data)

    def _take_link(self, path: str) -> int | None:
        folder, _, name = path.rpartition("/")
        place = f"{self._plain(folder)}/{name}"
        target = self._link_at(place)
        if target is None:
            return None
        self.found.links[place] = target
        self._add_links(folder)
        return len(target)

    def _file(self, place: str) -> bytes | None:
        made = self._made.get(place)
        if isinstance(made, UnreadableError):
            raise made
        return self._tree.read(place) if made is None else made

    def _config(self, place: str) -> bytes | None:
        if not self._tree.exists(place):
            return None
        data = redact.config_space(
            lambda offset, size: self._tree.read_part(place, offset, size) or b""
        )
        if len(data) == _SHORT_CONFIG and data[6] & 0x10:
            self.found.partial[place] = f"its first {_SHORT_CONFIG} bytes; the rest is for root"
        return data

    def _paths(self, source: Source) -> Iterator[str]:
        """Yield the paths that a pattern stands for."""
        path = source.path
        if "/PID/" in path:
            if self._pid is None:
                return
            path = path.replace("PID", self._pid)
        if path.endswith(".pid"):
            self._pid = None
        if "RELEASE" in path:
            if self._release is None or "/" in self._release:
                return
            path = path.replace("RELEASE", self._release)
        found = [""]
        for part in path.split("/")[1:]:
            if "*" in part:
                found = [
                    f"{folder}/{name}"
                    for folder in found
                    for name in self._names(folder)
                    if fnmatchcase(name, part)
                ]
            else:
                found = [f"{folder}/{part}" for folder in found]
        yield from found

    def _names(self, folder: str) -> tuple[str, ...]:
        try:
            return self._tree.names(self._plain(folder))
        except UnreadableError as failure:
            self._unreadable(failure.path, failure.reason)
            return ()

    def _plain(self, path: str) -> str:
        return walk(self._tree.source, path, self._link_at)

    def _link_at(self, path: str) -> str | None:
        if path not in self._links:
            self._links[path] = self._tree.link(path)
        return self._links[path]

    def _add_links(self, path: str) -> None:
        """Take the links on the way to a path, so that it is found in the capture, too."""

        def add(place: str) -> str | None:
            target = self._link_at(place)
            if target is not None:
                self.found.links[place] = target
            return target

        walk(self._tree.source, path, add)

    def _unreadable(self, path: str, reason: str) -> None:
        parts = path.split("/")
        above = ("/".join(parts[:end]) for end in range(2, len(parts)))
        # Behind a link there is nothing in an archive.
        behind_link = any(self._links.get(folder) is not None for folder in above)
        (self.found.partial if behind_link else self.found.unreadable)[path] = reason
