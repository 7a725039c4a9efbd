"""Write initramfs archives.

The format is ``newc`` of Linux ``Documentation/driver-api/early-userspace/buffer-format.rst``. The
same content gives the same bytes: names are sorted, everything belongs to root and has time 0.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path, PurePosixPath

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"
_ALIGNMENT = 4


class Archive:
    """An archive in memory.

    Names are relative to the root of the file system; parent folders are added as needed.
    """

    def __init__(self) -> None:
        self._members: dict[str, tuple[int, bytes]] = {}

    def add_folder(self, name: str | PurePosixPath) -> None:
        """Add a folder unless it exists."""
        self._add(name, stat.S_IFDIR | 0o755, b"")

    def add_file(self, name: str | PurePosixPath, content: bytes, mode: int = 0o644) -> None:
        """Add a file with its permissions."""
        self._add(name, stat.S_IFREG | mode, content)

    def add_link(self, name: str | PurePosixPath, target: str) -> None:
        """Add a symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def add_tree(self, tree: Path, below: str = "") -> None:
        """Add a folder of this machine with readable permissions for all.

        :param below: the target folder in the archive; its root when empty.
        """
        for folder, _, _ in os.walk(tree):
            for item in os.scandir(folder):
                name = os.path.relpath(item.path, tree)
                name = os.path.join(below, name) if below else name  # noqa: PTH118
                if item.is_symlink():
                    self.add_link(name, os.readlink(item.path))  # noqa: PTH115
                elif item.is_dir():
                    self.add_folder(name)
                else:
                    with open(item.path, "rb") as file:  # noqa: PTH123
                        content = file.read()
                    executable = item.stat().st_mode & stat.S_IXUSR
                    self.add_file(name, content, 0o755 if executable else 0o644)

    def _add(self, name: str | PurePosixPath, mode: int, content: bytes) -> None:
        path = str(name).strip("/")
        parent = path.rpartition("/")[0]
        if parent and parent not in self._members:
            self.add_folder(parent)
        self._members[path] = (mode, content)

    def encode(self) -> bytes:
        """Return the archive."""
        parts: list[bytes] = []
        for inode, (name, (mode, content)) in enumerate(sorted(self._members.items()), 1):
            links = 2 if stat.S_ISDIR(mode) else 1
            parts += _member(name, inode, mode, links, content)
        parts += _member(_TRAILER, 0, 0, 1, b"")
        return b"".join(parts)


def concatenate(archives: Iterable[bytes]) -> bytes:
    """Return archives, compressed or not, as one, which the kernel unpacks in order."""
    return b"".join(_padded(archive) for archive in archives)


def _member(name: str, inode: int, mode: int, links: int, content: bytes) -> tuple[bytes, bytes]:
    encoded = os.fsencode(name) + b"\0"
    # Inode, mode, owner, group, links, time, size, four device numbers, length of name, checksum.
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = _MAGIC + "".join(f"{field:08x}" for field in fields)
    return _padded(header.encode() + encoded), _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
