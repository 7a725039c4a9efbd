"""The files of a host: those of this machine, of a folder, or of a capture.

All readers of a host's ``/sys``, ``/proc`` or ``/boot`` take a :class:`HostTree`, so that the same
code reads each of the three.
"""

from __future__ import annotations

from typing import Protocol

from vmm_msi.errors import UnreadableError

__all__ = ["MAX_FILE", "HostTree", "UnreadableError", "name_of", "number", "shown_path", "text"]

#: The source of the tree of this machine.
THIS_MACHINE = "this machine"
#: Limit of one file in bytes: a kernel configuration has 300 KiB, an ACPI table less.
MAX_FILE = 4 << 20


class HostTree(Protocol):
    """Files of a host, by their absolute paths on it; links stay within the tree."""

    @property
    def source(self) -> str:
        """The folder or the capture, for messages."""
        ...

    def read(self, path: str, limit: int = MAX_FILE) -> bytes | None:
        """Return the content of a file.

        :return: None if the file does not exist.
        :raise UnreadableError: when it cannot be read, or is larger than ``limit`` bytes.
        """
        ...

    def read_part(self, path: str, offset: int, size: int) -> bytes | None:
        """Return ``size`` bytes from ``offset`` on, less if the file ends before that.

        For a device's configuration space, which should not be read as a whole.

        :return: None if the file does not exist.
        :raise UnreadableError: when it cannot be read.
        """
        ...

    def names(self, path: str) -> tuple[str, ...]:
        """Return the names in a folder, sorted; none if the folder does not exist.

        :raise UnreadableError: when it cannot be listed.
        """
        ...

    def link(self, path: str) -> str | None:
        """Return the target of the link at ``path``, as it is stored.

        :return: None if it is not a link.
        """
        ...

    def exists(self, path: str) -> bool:
        """Return whether a file or a folder exists."""
        ...


def text(tree: HostTree, path: str) -> str | None:
    """Return the content of a short text file, without the line break at its end.

    :return: None if the file does not exist.
    :raise UnreadableError: when it cannot be read.
    """
    data = tree.read(path)
    return None if data is None else data.decode("utf-8", "replace").rstrip("\n\0")


def number(tree: HostTree, path: str, base: int = 0) -> int | None:
    """Return the number in a file.

    :param base: as for :class:`int`; 0 honours a prefix ``0x``.
    :return: None if the file does not exist.
    :raise UnreadableError: when it cannot be read or its content is not a number.
    """
    content = text(tree, path)
    if content is None:
        return None
    try:
        return int(content.strip(), base)
    except ValueError:
        raise UnreadableError(tree.source, path, f"{content[:40]!r} is not a number") from None


def shown_path(tree: HostTree, path: str) -> str:
    """Return a path for messages: with the folder or capture, unless it is of this machine."""
    return path if tree.source == THIS_MACHINE else f"{tree.source}{path}"


def name_of(tree: HostTree, path: str) -> str | None:
    """Return the last part of the target of the link at ``path``, such as a device's driver."""
    target = tree.link(path)
    return None if target is None else target.rstrip("/").rsplit("/", 1)[-1]
