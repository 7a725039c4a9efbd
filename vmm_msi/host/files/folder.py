"""The files of this machine, or of a host whose files are in a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vmm_msi.host.files import MAX_FILE, THIS_MACHINE, UnreadableError
from vmm_msi.host.files.paths import walk

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# A file in /proc/sys refuses to be read by MAX_FILE at once (Linux fs/proc/proc_sysctl.c
# proc_sys_call_handler).
_AT_ONCE = 1 << 16
# A device or a pipe would block.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class FolderTree:
    """The files below ``root``.

    Links are followed here and not by the kernel, so that those of a folder lead to what is in the
    folder: an absolute one begins at ``root``, and ``..`` ends there.

    :param root: ``/`` for this machine.
    """

    def __init__(self, root: Path) -> None:
        self._root = "" if root == Path("/") else str(root)
        self._links: dict[str, str | None] = {}

    @property
    def is_this_machine(self) -> bool:
        """Whether they are this machine's own, and not those of a folder."""
        return not self._root

    @property
    def source(self) -> str:
        """The folder, or ``this machine``."""
        return self._root or THIS_MACHINE

    def read(self, path: str, limit: int = MAX_FILE) -> bytes | None:
        """Return what a file has; None where there is none."""

        def read() -> bytes:
            descriptor = os.open(self._place(path), _FLAGS)
            try:
                return _read(descriptor, limit + 1)
            finally:
                os.close(descriptor)

        data = self._asked(path, read, None)
        if data is not None and len(data) > limit:
            raise UnreadableError(self.source, path, f"it has more than {limit} bytes")
        return data

    def read_part(self, path: str, offset: int, size: int) -> bytes | None:
        """Return a part of what a file has; None where there is none."""

        def read() -> bytes:
            descriptor = os.open(self._place(path), _FLAGS)
            try:
                return os.pread(descriptor, size, offset)
            finally:
                os.close(descriptor)

        return self._asked(path, read, None)

    def names(self, path: str) -> tuple[str, ...]:
        """Return what is in a folder, sorted."""

        def read() -> tuple[str, ...]:
            return tuple(sorted(os.listdir(self._place(path))))  # noqa: PTH208

        return self._asked(path, read, ())

    def link(self, path: str) -> str | None:
        """Return where a link leads to; None where it is no link."""
        folder, _, name = path.rstrip("/").rpartition("/")

        def read() -> str | None:
            place = f"{self._place(folder)}/{name}"
            return os.readlink(place) if os.path.islink(place) else None  # noqa: PTH114, PTH115

        return self._asked(path, read, None)

    def exists(self, path: str) -> bool:
        """Tell whether there is a file or a folder."""
        return self._asked(path, lambda: os.path.exists(self._place(path)), False)  # noqa: PTH110

    def _asked(self, path: str, ask: Callable[[], T], otherwise: T) -> T:
        try:
            return ask()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return otherwise
        except OSError as failure:
            raise UnreadableError(self.source, path, failure.strerror or str(failure)) from failure

    def _place(self, path: str) -> str:
        """Return where a path of the host is on this machine."""
        if not self._root:
            return path
        return self._root + walk(self.source, path, self._link_at)

    def _link_at(self, path: str) -> str | None:
        # Looked up once: the way to a file mostly leads through folders of others before it.
        if path not in self._links:
            place = self._root + path
            self._links[path] = os.readlink(place) if os.path.islink(place) else None  # noqa: PTH114, PTH115
        return self._links[path]


def this_machine() -> FolderTree:
    """Return the files of the machine that this runs on."""
    return FolderTree(Path("/"))


def _read(descriptor: int, size: int) -> bytes:
    """Return up to ``size`` bytes."""
    found = bytearray()
    while len(found) < size:
        part = os.read(descriptor, min(_AT_ONCE, size - len(found)))
        if not part:
            break
        found += part
    return bytes(found)
