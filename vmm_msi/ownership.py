"""Which users may change a path, by the owner and mode of each of its components.

A folder that another user may write to cannot be trusted: its entries can be replaced at any time,
by links too. A sticky folder such as /tmp is in between (unlink(2)): its entries can be replaced by
their owners only, but others may add new ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Generator

#: Linux's limit of links in one path (path_resolution(7)).
_MAX_LINKS = 40
_ROOT = 0


class Component(NamedTuple):
    """A component of a path.

    :ivar path: its path, without links above it.
    :ivar descriptor: opened with O_PATH, for as long as the iteration is at this component.
    :ivar is_last: the path ends here, and this is not a link.
    """

    path: Path
    status: os.stat_result
    descriptor: int
    is_last: bool


class Weakness(NamedTuple):
    """A component of a path that other users may change."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


def trusted_owners() -> frozenset[int]:
    """Return the users that this process trusts: root and its own."""
    return frozenset({_ROOT, os.geteuid()})


def components(path: Path) -> Generator[Component, None, None]:
    """Yield the components of a path from / on, and those of the targets of links in it.

    Each is opened relative to the one above, so a component that is replaced meanwhile is never
    mixed with the one that was yielded.

    :raise OSError: when a component does not exist or cannot be opened.
    """
    pending = [*reversed(path.absolute().parts[1:])]
    shown, links = Path("/"), 0
    above = _open_root()
    try:
        yield Component(shown, os.fstat(above), above, not pending)
        while pending:
            name = pending.pop()
            place = shown.parent if name == ".." else shown / name
            descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
            try:
                status = os.fstat(descriptor)
                is_link = stat.S_ISLNK(status.st_mode)
                yield Component(place, status, descriptor, not pending and not is_link)
                if not is_link:
                    shown, above, descriptor = place, descriptor, above
                    continue
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                # An empty name is the opened link itself (readlinkat(2)).
                target = Path(os.readlink("", dir_fd=descriptor))
                pending += reversed(target.parts[target.is_absolute() :])
            finally:
                os.close(descriptor)
            if target.is_absolute():
                shown, above, old = Path("/"), _open_root(), above
                os.close(old)
            if not pending:  # the target is / or .
                yield Component(shown, os.fstat(above), above, is_last=True)
    finally:
        os.close(above)


def _open_root() -> int:
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def weakness(path: Path, owners: Collection[int] | None = None) -> Weakness | None:
    """Return the first component of a path that a user outside ``owners`` may change.

    :param path: a file, or a folder to which such a user may not add an entry either.
    :param owners: user ids; default: :func:`trusted_owners`.
    :return: None if there is no such component.
    :raise OSError: when a component does not exist or cannot be opened.
    """
    owners = trusted_owners() if owners is None else owners
    for component in components(path):
        reason = reason_of(component.status, owners, may_be_sticky=not component.is_last)
        if reason:
            return Weakness(component.path, reason)
    return None


def reason_of(
    status: os.stat_result, owners: Collection[int], *, may_be_sticky: bool = False
) -> str:
    """Return why a user outside ``owners`` may change a file or folder; empty if none may.

    :param may_be_sticky: accept a sticky folder to which others may add entries.
    """
    if status.st_uid not in owners:
        return f"belongs to user {status.st_uid}"
    mode = status.st_mode
    if stat.S_ISLNK(mode) or (may_be_sticky and stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
        return ""
    if mode & stat.S_IWOTH:
        return "is writable by every user"
    if mode & stat.S_IWGRP and not _is_private_group(status.st_gid, owners):
        return f"is writable by group {status.st_gid}"
    return ""


def _is_private_group(group: int, owners: Collection[int]) -> bool:
    """Return whether a group is the one that useradd(8) creates for the calling user alone."""
    user = os.geteuid()
    return group == user != _ROOT and user in owners


def open_folder(path: Path) -> int:
    """Open a folder with O_PATH, for calls that take a folder's descriptor.

    :raise NotADirectoryError: when it is not a folder.
    :raise PermissionError: when a component is a link of a user that this process does not trust.
    :raise OSError: when a component does not exist or cannot be opened.
    """
    with contextlib.closing(components(path)) as walk:
        for component in walk:
            is_link = stat.S_ISLNK(component.status.st_mode)
            if is_link and component.status.st_uid not in trusted_owners():
                reason = f"{component.path} is a link of user {component.status.st_uid}"
                raise PermissionError(errno.EPERM, reason, str(path))
            if component.is_last:
                if stat.S_ISDIR(component.status.st_mode):
                    return os.dup(component.descriptor)
                break
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def find_program(name: str, search: str | None = None) -> str | None:
    """Return the first program of a name that no other user may change; None without one.

    :param search: folders as in ``$PATH``, which is the default. Relative and empty ones, which
        are relative to the current folder, are skipped.
    """
    search = os.environ.get("PATH", os.defpath) if search is None else search
    for folder in search.split(os.pathsep):
        program = Path(folder, name)
        try:
            if not folder.startswith("/") or not program.is_file() or weakness(program):
                continue
        except OSError:
            continue
        if os.access(program, os.X_OK):
            return str(program)
    return None
