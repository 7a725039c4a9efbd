"""The files of a host: those of this machine, of a folder, or of a capture.

Whoever reads a host's ``/sys``, ``/proc`` or ``/boot`` does it through a :class:`HostTree`, so that
the same code reads all of them.
"""

from __future__ import annotations

from typing import Protocol

from vmm_msi.errors import UnreadableError

__all__ = ["MAX_FILE", "HostTree", "UnreadableError", "name_of", "number", "place", "text"]

#: The source of the tree of the machine that this runs on.
THIS_MACHINE = "this machine"
#: Bytes that one file may have: a kernel configuration has 300 KiB, an ACPI table less.
MAX_FILE = 4 << 20


class HostTree(Protocol):
    """Files of a host, by their absolute paths on it; links lead nowhere else."""

    @property
    def source(self) -> str:
        """The folder or the file it is from, for messages."""
        ...

    def read(self, path: str, limit: int = MAX_FILE) -> bytes | None:
        """Return what a file has.

        :return: None where there is no such file.
        :raise UnreadableError: when it cannot be read, or has more than ``limit`` bytes.
        """
        ...

    def read_part(self, path: str, offset: int, size: int) -> bytes | None:
        """Return ``size`` bytes from ``offset`` on, less where the file ends before that.

        For a device's configuration space, of which not all should be read.

        :return: None where there is no such file.
        :raise UnreadableError: when it cannot be read.
        """
        ...

    def names(self, path: str) -> tuple[str, ...]:
        """Return what is in a folder, sorted; nothing where there is no such folder.

        :raise UnreadableError: when it cannot be listed.
        """
        ...

    def link(self, path: str) -> str | None:
        """Return where the last part of ``path`` leads to, as the link says it.

        :return: None where it is no link.
        """
        ...

    def exists(self, path: str) -> bool:
        """Tell whether there is a file or a folder."""
        ...


def text(tree: HostTree, path: str) -> str | None:
    """Return a file of one short text, without the line break at its end.

    :return: None where there is no such file.
    :raise UnreadableError: when it cannot be read.
    """
    data = tree.read(path)
    return None if data is None else data.decode("utf-8", "replace").rstrip("\n\0")


def number(tree: HostTree, path: str, base: int = 0) -> int | None:
    """Return a file of one number.

    :param base: as for :class:`int`; 0 takes ``0x`` for what it is.
    :return: None where there is no such file.
    :raise UnreadableError: when it cannot be read or has no number.
    """
    found = text(tree, path)
    if found is None:
        return None
    try:
        return int(found.strip(), base)
    except ValueError:
        raise UnreadableError(tree.source, path, f"{found[:40]!r} is no number") from None


def place(tree: HostTree, path: str) -> str:
    """Return what to call a file in messages: where it is on this machine, or in which capture."""
    return path if tree.source == THIS_MACHINE else f"{tree.source}{path}"


def name_of(tree: HostTree, path: str) -> str | None:
    """Return the name of what the link at ``path`` leads to, such as a device's driver."""
    target = tree.link(path)
    return None if target is None else target.rstrip("/").rsplit("/", 1)[-1]
