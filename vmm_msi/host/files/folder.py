"""Read the files of this machine, or of a host whose files are in a folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vmm_msi.host.files import MAX_FILE, THIS_MACHINE, UnreadableError
from vmm_msi.host.files.paths import PathWalker

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# A file in /proc/sys cannot be read by MAX_FILE bytes at a time (Linux fs/proc/proc_sysctl.c
# proc_sys_call_handler).
_CHUNK = 1 << 16
# O_NONBLOCK: opening a device or a pipe must not block.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class FolderTree:
    """The files below ``root``.

    Links are followed here and not by the kernel, so that they stay within the folder: an absolute
    link starts at ``root``, and ``..`` does not leave it. A file that is reached otherwise, because
    another user put a link in the way meanwhile, is not read.

    :param root: ``/`` for this machine.
    """

    def __init__(self, root: Path) -> None:
        self._root = "" if root == Path("/") else str(root)
        self._real_root = os.path.realpath(self._root) if self._root else ""
        self._links: dict[str, str | None] = {}
        self._walker = PathWalker(self.source, self._link_at)

    @property
    def is_this_machine(self) -> bool:
        """Whether the files are this machine's own, not those of a folder."""
        return not self._root

    @property
    def source(self) -> str:
        """The folder, or ``this machine``."""
        return self._root or THIS_MACHINE

    def read(self, path: str, limit: int = MAX_FILE) -> bytes | None:
        """Return the content of a file; None if it does not exist."""

        def read() -> bytes:
            descriptor = self._open(path)
            try:
                return _read(descriptor, limit + 1)
            finally:
                os.close(descriptor)

        data = self._attempt(path, read, None)
        if data is not None and len(data) > limit:
            raise UnreadableError(self.source, path, f"larger than {limit} bytes")
        return data

    def read_part(self, path: str, offset: int, size: int) -> bytes | None:
        """Return a part of a file; None if it does not exist."""

        def read() -> bytes:
            descriptor = self._open(path)
            try:
                return os.pread(descriptor, size, offset)
            finally:
                os.close(descriptor)

        return self._attempt(path, read, None)

    def names(self, path: str) -> tuple[str, ...]:
        """Return the names in a folder, sorted."""

        def read() -> tuple[str, ...]:
            descriptor = self._open(path, os.O_DIRECTORY)
            try:
                return tuple(sorted(os.listdir(descriptor)))  # noqa: PTH208
            finally:
                os.close(descriptor)

        return self._attempt(path, read, ())

    def link(self, path: str) -> str | None:
        """Return the target of a link; None if it is not a link."""
        folder, _, name = path.rstrip("/").rpartition("/")

        def read() -> str | None:
            place = f"{self._place(folder)}/{name}"
            return os.readlink(place) if os.path.islink(place) else None  # noqa: PTH114, PTH115

        return self._attempt(path, read, None)

    def exists(self, path: str) -> bool:
        """Return whether a file or a folder exists."""
        return self._attempt(path, lambda: os.path.exists(self._place(path)), False)  # noqa: PTH110

    def _attempt(self, path: str, read: Callable[[], T], missing: T) -> T:
        """Return what ``read`` returns, ``missing`` if the path does not exist."""
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return missing
        except OSError as failure:
            raise UnreadableError(self.source, path, failure.strerror or str(failure)) from failure

    def _open(self, path: str, flags: int = 0) -> int:
        """Open a file or a folder.

        :raise OSError: when its path has a link that was not there when links were followed.
        """
        place = self._place(path)
        descriptor = os.open(place, _FLAGS | flags)
        if self._root and self._is_elsewhere(descriptor, place):
            os.close(descriptor)
            raise OSError(errno.ESTALE, "another process replaced it while it was opened")
        return descriptor

    def _is_elsewhere(self, descriptor: int, place: str) -> bool:
        try:
            opened = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
        except OSError:
            return False  # without a /proc this is unknown
        return opened != (self._real_root.rstrip("/") + place.removeprefix(self._root) or "/")

    def _place(self, path: str) -> str:
        """Return the path on this machine of a path of the host."""
        if not self._root:
            return path
        return self._root + self._walker.place(path)

    def _link_at(self, path: str) -> str | None:
        # Looked up once: most paths begin with the folders of others.
        if path not in self._links:
            place = self._root + path
            self._links[path] = os.readlink(place) if os.path.islink(place) else None  # noqa: PTH114, PTH115
        return self._links[path]


def this_machine() -> FolderTree:
    """Return the files of this machine."""
    return FolderTree(Path("/"))


def _read(descriptor: int, size: int) -> bytes:
    """Return up to ``size`` bytes."""
    content = bytearray()
    while len(content) < size:
        part = os.read(descriptor, min(_CHUNK, size - len(content)))
        if not part:
            break
        content += part
    return bytes(content)
