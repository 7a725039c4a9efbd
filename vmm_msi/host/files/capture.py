"""Take a capture of a host's files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from vmm_msi.host.files import UnreadableError, redact, text
from vmm_msi.host.files.capture_list import CAPTURED_PATHS, CaptureKind
from vmm_msi.host.files.capture_paths import KERNEL_LOG, MANIFEST, PAGE_SIZE
from vmm_msi.host.files.kernel_log import KMSG, kernel_log
from vmm_msi.host.files.pack import pack
from vmm_msi.host.files.paths import walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmm_msi.host.files import HostTree
    from vmm_msi.host.files.capture_list import CapturedPath

    #: The files that a capture adds to the host's own, by path, or why one could not be read.
    AddedFiles = Mapping[str, bytes | UnreadableError]

_RELEASE = "/proc/sys/kernel/osrelease"
_SHORT_CONFIG = 64


@dataclass
class Capture:
    """The files of a host that were taken.

    :param files: contents by path.
    :param links: targets by path.
    :param folders: folders that may be empty.
    :param unreadable: by path, why a file could not be read.
    :param partial: by path, why only a part of a file was taken.
    :param taken: the number of files and links of each of :data:`CAPTURED_PATHS`, and of bytes.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: dict[str, None] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    partial: dict[str, str] = field(default_factory=dict)
    taken: dict[CapturedPath, tuple[int, int]] = field(default_factory=dict)

    def packed(self, tool: str) -> bytes:
        """Return the archive.

        :param tool: the program that writes it, with its version.
        :raise TopologyError: when it exceeds the limits of :mod:`vmm_msi.host.files.archive`.
        """
        import msgspec

        from vmm_msi.host.files.manifest import SCHEMA, Manifest

        manifest = Manifest(SCHEMA, tool, self.unreadable, self.partial)
        document = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"))
        files = {**self.files, MANIFEST: document + b"\n"}
        return pack(files, self.links, self.folders)


def added_files(tree: HostTree) -> dict[str, bytes | UnreadableError]:
    """Return the page size and the kernel's log of this machine, as files of a capture."""
    added: dict[str, bytes | UnreadableError] = {
        PAGE_SIZE: f"{os.sysconf('SC_PAGE_SIZE')}\n".encode()
    }
    try:
        added[KERNEL_LOG] = "".join(f"{line}\n" for line in kernel_log(tree)).encode()
    except UnreadableError as failure:
        added[KERNEL_LOG] = UnreadableError(tree.source, KERNEL_LOG, f"{KMSG}: {failure.reason}")
    return added


def take_capture(tree: HostTree, added: AddedFiles | None = None) -> Capture:
    """Take all of :data:`CAPTURED_PATHS` that a host has.

    Missing files are left out; unreadable ones are recorded.

    :param added: files beside the host's own.
    """
    capturer = _Capturer(tree, added or {})
    for captured in CAPTURED_PATHS:
        capturer.take(captured)
    return capturer.capture


class _Capturer:
    def __init__(self, tree: HostTree, added: AddedFiles) -> None:
        self._tree = tree
        self._added = added
        self._links: dict[str, str | None] = {}
        self._pid: str | None = None
        self.capture = Capture()
        try:
            self._release = text(tree, _RELEASE)
        except UnreadableError:
            self._release = None

    def take(self, captured: CapturedPath) -> None:
        """Take the files of one entry of the list."""
        count, size = self.capture.taken.get(captured, (0, 0))
        for path in self._paths(captured):
            try:
                taken = self._take(captured, path)
            except UnreadableError as failure:
                self._unreadable(failure.path, failure.reason)
            except ValueError as failure:
                self._unreadable(self._plain(path), str(failure))
            else:
                count += taken is not None
                size += taken or 0
        self.capture.taken[captured] = (count, size)

    def _take(self, captured: CapturedPath, path: str) -> int | None:
        """Take one path and return the number of its bytes; None if it does not exist."""
        if captured.kind is CaptureKind.LINK:
            return self._take_link(path)
        place = self._plain(path)
        if captured.kind in {CaptureKind.FILE_EXISTS, CaptureKind.FOLDER_EXISTS}:
            if not self._tree.exists(place):
                return None
            if captured.kind is CaptureKind.FOLDER_EXISTS:
                self.capture.folders[place] = None
                data = b""
            else:
                data = self.capture.files.setdefault(place, b"")
        else:
            read = self._config if captured.kind is CaptureKind.CONFIG_SPACE else self._file
            content = read(place)
            if content is None:
                return None
            data = content if captured.reduce is None else captured.reduce(content)
            self.capture.files[place] = data
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
        self.capture.links[place] = target
        self._add_links(folder)
        return len(target)

    def _file(self, place: str) -> bytes | None:
        added = self._added.get(place)
        if isinstance(added, UnreadableError):
            raise added
        return self._tree.read(place) if added is None else added

    def _config(self, place: str) -> bytes | None:
        if not self._tree.exists(place):
            return None
        data = redact.config_space(
            lambda offset, size: self._tree.read_part(place, offset, size) or b""
        )
        if len(data) == _SHORT_CONFIG and data[6] & 0x10:
            self.capture.partial[place] = f"its first {_SHORT_CONFIG} bytes; the rest requires root"
        return data

    def _paths(self, captured: CapturedPath) -> Iterator[str]:
        """Yield the paths that the pattern of an entry stands for."""
        path = captured.path
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
        paths = [""]
        for part in path.split("/")[1:]:
            if "*" in part:
                paths = [
                    f"{folder}/{name}"
                    for folder in paths
                    for name in self._names(folder)
                    if fnmatchcase(name, part)
                ]
            else:
                paths = [f"{folder}/{part}" for folder in paths]
        yield from paths

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
        """Take the links in a path, so that the path works in the capture too."""

        def add(place: str) -> str | None:
            target = self._link_at(place)
            if target is not None:
                self.capture.links[place] = target
            return target

        walk(self._tree.source, path, add)

    def _unreadable(self, path: str, reason: str) -> None:
        parts = path.split("/")
        above = ("/".join(parts[:end]) for end in range(2, len(parts)))
        # An archive cannot have a member behind a link.
        behind_link = any(self._links.get(folder) is not None for folder in above)
        (self.capture.partial if behind_link else self.capture.unreadable)[path] = reason
