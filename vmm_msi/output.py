"""Write the file that ``-o`` names: complete or not at all, and never through a link.

A new file is written under a random name in the folder of FILE and then gets FILE's name: with
link(2), which never replaces an entry, or with rename(2), which replaces the entry itself and not
what a link leads to. Other users cannot choose what is overwritten, even in /tmp.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import sys
from typing import IO, TYPE_CHECKING

from vmm_msi import ownership
from vmm_msi.errors import OutputError
from vmm_msi.terminal import write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Names of descriptors that this process has open already (proc_pid_fd(5)).
_DESCRIPTOR = re.compile(r"/dev/std(out|err)|/(?:dev|proc/self)/fd/([0-9]{1,4})")
_NUMBERS = {"out": 1, "err": 2}
_NOT_WRITABLE = {stat.S_IFDIR: "folder", stat.S_IFSOCK: "socket"}
_EXISTS = "it exists already; --force overwrites it"
#: link(2) on a file system without hard links, such as FAT.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def check_target(path: Path | None, *, force: bool) -> None:
    """Check in advance that an output file can be written.

    :param path: None for standard output.
    :param force: replace an existing file.
    :raise OutputError: when it cannot be written.
    """
    if path is None:
        if sys.stdout.isatty():
            raise OutputError("writing to standard output: it is a terminal; redirect it")
        return
    with _translated(path), contextlib.closing(_Target(path)) as target:
        if target.descriptor is None:
            target.check(force=force)


def write_output(path: Path | None, data: bytes, *, force: bool = False) -> None:
    """Write an output file that only its owner can read.

    :param path: None for standard output.
    :param force: replace an existing file.
    :raise OutputError: when it cannot be written.
    """
    check_target(path, force=force)
    if path is not None:
        with output_file(path, force=force) as file:
            file.write(data)
        return
    try:
        write_bytes(data)
    except BrokenPipeError:
        raise
    except OSError as failure:
        raise OutputError(f"writing standard output: {failure.strerror or failure}") from failure


@contextlib.contextmanager
def output_file(path: Path, *, force: bool, mode: int = 0o600) -> Iterator[IO[bytes]]:
    """Yield a file to write; it appears at ``path`` when the block ends without an error.

    A pipe or a device is written to in place, if it belongs to the caller or to root.

    :param force: replace an existing file.
    :param mode: of a new file, reduced by the umask.
    :raise OutputError: when it cannot be written.
    """
    with (
        _translated(path),
        contextlib.closing(_Target(path)) as target,
        target.opened(force=force, mode=mode) as file,
    ):
        yield file


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as failure:
        raise OutputError(f"writing {path}: {failure.strerror or failure}") from failure


class _Target:
    """A name in an opened folder.

    :ivar descriptor: of this process, which the path names; None for any other path.
    :raise OutputError: when the path names a folder.
    :raise OSError: when its folder cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder: int | None = None
        own = _DESCRIPTOR.fullmatch(str(path))
        self.descriptor = None if own is None else _NUMBERS.get(own[1]) or int(own[2])
        if own is not None:
            return
        if path.name in {"", ".."}:
            raise self._error("it is a folder; name a file")
        try:
            self._folder = ownership.open_folder(path.parent)
        except FileNotFoundError as failure:
            raise self._error(
                f"the folder {path.parent} does not exist; create it first"
            ) from failure

    def close(self) -> None:
        """Close the folder."""
        if self._folder is not None:
            os.close(self._folder)

    def _error(self, problem: str) -> OutputError:
        return OutputError(f"writing {self._path}: {problem}")

    def check(self, *, force: bool) -> os.stat_result | None:
        """Check what has the name now.

        :return: the pipe or device that has it; None for a new file.
        :raise OutputError: when it cannot be written.
        """
        try:
            status = os.stat(self._path.name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        kind = stat.S_IFMT(status.st_mode)
        if kind in _NOT_WRITABLE:
            raise self._error(f"it is a {_NOT_WRITABLE[kind]}; name a file")
        if kind in {stat.S_IFREG, stat.S_IFLNK}:
            if not force:
                raise self._error(_EXISTS)
            return None
        if status.st_uid not in ownership.trusted_owners():
            raise self._error(
                f"it is a pipe or device of user {status.st_uid}; use one of your own, or name a "
                "new file"
            )
        return status

    @contextlib.contextmanager
    def opened(self, *, force: bool, mode: int) -> Iterator[IO[bytes]]:
        """Yield the file to write."""
        if self.descriptor is not None:
            with os.fdopen(os.dup(self.descriptor), "wb") as file:
                yield file
            return
        special = self.check(force=force)
        with (
            self._new(force=force, mode=mode) if special is None else self._in_place(special)
        ) as file:
            yield file

    @contextlib.contextmanager
    def _in_place(self, status: os.stat_result) -> Iterator[IO[bytes]]:
        """Yield a pipe or a device; opening it never waits for a reader."""
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path.name, flags, dir_fd=self._folder)
        except OSError as failure:
            if failure.errno != errno.ENXIO:
                raise
            raise self._error("no process reads this pipe; start the reader first") from failure
        with os.fdopen(descriptor, "wb") as file:
            if not os.path.samestat(os.fstat(descriptor), status):
                raise self._error("another process replaced it; name a new file")
            os.set_blocking(descriptor, True)
            yield file

    @contextlib.contextmanager
    def _new(self, *, force: bool, mode: int) -> Iterator[IO[bytes]]:
        """Yield a file under a random name; give it its name at the end."""
        partial = f".{secrets.token_hex(8)}.partial"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(partial, flags, mode, dir_fd=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(descriptor)
            if not force:
                self._reserve(partial)
            else:
                self._rename(partial)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial, dir_fd=self._folder)

    def _reserve(self, partial: str) -> None:
        """Give the file its name, unless another file has it."""
        name = self._path.name
        folders = {"src_dir_fd": self._folder, "dst_dir_fd": self._folder}
        try:
            try:
                os.link(partial, name, follow_symlinks=False, **folders)
            except OSError as failure:
                if failure.errno not in _NO_LINKS:
                    raise
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o600, dir_fd=self._folder))
                self._rename(partial)
        except FileExistsError as failure:
            raise self._error(_EXISTS) from failure

    def _rename(self, partial: str) -> None:
        os.replace(partial, self._path.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
