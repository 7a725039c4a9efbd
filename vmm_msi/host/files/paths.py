"""Where a path of a host leads to, links followed within the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.host.files import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Links that one path may lead through: Linux ``include/linux/namei.h`` MAXSYMLINKS.
MAX_LINKS = 40
#: Bytes of a path, and of what a link leads to, in a capture; sysfs has some of 200.
MAX_PATH = 512


def walk(source: str, path: str, link_at: Callable[[str], str | None]) -> str:
    """Return the plain path that ``path`` leads to; that of the root is empty.

    :param source: the host, for messages.
    :param link_at: where the link at a plain path leads to, None where it is no link.
    :raise UnreadableError: when it leads through more than :data:`MAX_LINKS` links.
    """
    pending = path.split("/")[::-1]
    found: list[str] = []
    links = 0
    while pending:
        part = pending.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            del found[-1:]
            continue
        found.append(part)
        target = link_at("/" + "/".join(found))
        if target is not None:
            links += 1
            if links > MAX_LINKS:
                raise UnreadableError(source, path, f"it leads through more than {MAX_LINKS} links")
            found = [] if target.startswith("/") else found[:-1]
            pending += target.split("/")[::-1]
    return "".join(f"/{part}" for part in found)
