"""Follow the links in paths of a host, within the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.host.files import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Limit of links in one path: Linux ``include/linux/namei.h`` MAXSYMLINKS.
MAX_LINKS = 40
#: Limit in bytes of a path and of a link's target in a capture; sysfs has some of 200.
MAX_PATH = 512
#: Limit of names in a path and in a link's target in a capture; sysfs has some of 20.
MAX_PARTS = 64
#: Limit of names that are looked up to follow the links in all paths of one host. A function needs
#: 20 to 40.
MAX_STEPS = 2_000_000


class PathWalker:
    """Follow links in the paths of one host; results for folders are kept.

    :param source: the host, for messages.
    :param link_at: returns the target of the link at a path, None if it is not a link.
    """

    def __init__(self, source: str, link_at: Callable[[str], str | None]) -> None:
        self._source = source
        self._link_at = link_at
        self._folders: dict[str, str] = {"": ""}
        #: Names that were looked up until now.
        self.steps = 0

    def place(self, path: str) -> str:
        """Return the path without links that ``path`` stands for; the root's is empty.

        :raise UnreadableError: when there are more than :data:`MAX_LINKS` links in it.
        :raise TopologyError: when all paths took more than :data:`MAX_STEPS` steps.
        """
        folder, _, name = path.rpartition("/")
        if name not in {"", ".", ".."}:
            if folder not in self._folders:
                self._folders[folder] = self.walk(folder)
            place = f"{self._folders[folder]}/{name}"
            if self._link_at(place) is None:
                return place
        return self.walk(path)

    def walk(self, path: str) -> str:
        """Return the same, and look up each name in the path."""
        pending = path.split("/")[::-1]
        #: The folders passed until now, without links; the last is the one reached.
        passed = [""]
        links = 0
        while pending:
            part = pending.pop()
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise TopologyError(
                    f"{self._source}: following the links in its paths takes more than {MAX_STEPS} "
                    "steps, the limit of a host's files"
                )
            if part in {"", "."}:
                continue
            if part == "..":
                if len(passed) > 1:
                    passed.pop()
                continue
            place = f"{passed[-1]}/{part}"
            target = self._link_at(place)
            if target is None:
                passed.append(place)
                continue
            links += 1
            if links > MAX_LINKS:
                raise UnreadableError(self._source, path, f"more than {MAX_LINKS} links")
            if target.startswith("/"):
                passed = [""]
            pending += target.split("/")[::-1]
        return passed[-1]


def walk(source: str, path: str, link_at: Callable[[str], str | None]) -> str:
    """Return the path without links that one ``path`` stands for.

    :param source: the host, for messages.
    :param link_at: returns the target of the link at a path, None if it is not a link; called for
        each name in the path.
    :raise UnreadableError: when there are more than :data:`MAX_LINKS` links.
    """
    return PathWalker(source, link_at).walk(path)
