"""The files of a host in memory, as in a capture or a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.host.files import MAX_FILE, UnreadableError
from vmm_msi.host.files.paths import PathWalker

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class MemoryTree:
    """Files, links and folders by absolute, plain paths: no ``.``, no ``..``, no ``//``.

    :param source: the capture, for messages.
    :param files: contents by path.
    :param links: targets of links by path, as they are stored.
    :param folders: folders that may be empty; those of files and links exist anyway.
    :param unreadable: by path, why it could not be read.
    """

    def __init__(
        self,
        source: str,
        files: Mapping[str, bytes],
        links: Mapping[str, str] | None = None,
        folders: Iterable[str] = (),
        unreadable: Mapping[str, str] | None = None,
    ) -> None:
        self._source = source
        self._files = files
        self._links = links or {}
        self._walker = PathWalker(source, self._links.get)
        self._last: tuple[str, bytes | None] = ("", None)
        self._unreadable = unreadable or {}
        self._children: dict[str, dict[str, None]] = {"": {}}
        for path in (*files, *self._links, *self._unreadable):
            self._add(path)
        for path in folders:
            self._add(path)
            self._children.setdefault(path, {})

    def _add(self, path: str) -> None:
        while path:
            folder, _, name = path.rpartition("/")
            known = folder in self._children
            self._children.setdefault(folder, {})[name] = None
            if known:
                return
            path = folder

    @property
    def source(self) -> str:
        """The capture, for messages."""
        return self._source

    def read(self, path: str, limit: int = MAX_FILE) -> bytes | None:
        """Return the content of a file; None if it does not exist."""
        place = self._place(path)
        if place in self._unreadable:
            raise UnreadableError(self.source, path, self._unreadable[place])
        data = self._files.get(place)
        if data is not None and len(data) > limit:
            raise UnreadableError(self.source, path, f"larger than {limit} bytes")
        return data

    def read_part(self, path: str, offset: int, size: int) -> bytes | None:
        """Return a part of a file; None if it does not exist."""
        # A configuration space is read in many parts.
        if self._last[0] != path:
            self._last = (path, self.read(path))
        data = self._last[1]
        return None if data is None else data[offset : offset + size]

    def names(self, path: str) -> tuple[str, ...]:
        """Return the names in a folder, sorted."""
        place = self._place(path)
        if place in self._unreadable:
            raise UnreadableError(self.source, path, self._unreadable[place])
        return tuple(sorted(self._children.get(place, ())))

    def link(self, path: str) -> str | None:
        """Return the target of a link; None if it is not a link."""
        folder, _, name = path.rstrip("/").rpartition("/")
        return self._links.get(f"{self._place(folder)}/{name}")

    def exists(self, path: str) -> bool:
        """Return whether a file or a folder exists."""
        place = self._place(path)
        return place in self._files or place in self._children or place in self._unreadable

    def _place(self, path: str) -> str:
        """Return the path that ``path`` stands for, links followed."""
        return self._walker.place(path)
