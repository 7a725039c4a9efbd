"""Follow the links in a path of a host, within the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.host.files import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Limit of links in one path: Linux ``include/linux/namei.h`` MAXSYMLINKS.
MAX_LINKS = 40
#: Limit in bytes of a path and of a link's target in a capture; sysfs has some of 200.
MAX_PATH = 512


def walk(source: str, path: str, link_at: Callable[[str], str | None]) -> str:
    """Return the path without links that ``path`` stands for; the root's is empty.

    :param source: the host, for messages.
    :param link_at: returns the target of the link at a path, None if it is not a link.
    :raise UnreadableError: when there are more than :data:`MAX_LINKS` links.
    """
    pending = path.split("/")[::-1]
    resolved: list[str] = []
    links = 0
    while pending:
        part = pending.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            del resolved[-1:]
            continue
        resolved.append(part)
        target = link_at("/" + "/".join(resolved))
        if target is not None:
            links += 1
            if links > MAX_LINKS:
                raise UnreadableError(source, path, f"more than {MAX_LINKS} links")
            resolved = [] if target.startswith("/") else resolved[:-1]
            pending += target.split("/")[::-1]
    return "".join(f"/{part}" for part in resolved)
