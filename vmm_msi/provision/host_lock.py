"""A lock per host: one change of a guest at a time.

libvirt redefines a domain without comparing it with what it was (it has no compare-and-swap), so
two programs that read, edit and define would lose one of the edits, and could assign one device to
two guests. All processes of a user on one machine share a lock file for each host that they change.

The file is in a folder of root or of that user, and no other user can open it: flock(2) takes no
more than the right to read, so a user who can open the file can block every change. Other users,
other programs, and vmm-msi on other machines do not share it: a change of theirs between reading
and defining, a few milliseconds, is lost.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi import ownership
from vmm_msi.errors import HypervisorError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Folder of root's lock files. /run is empty after a reboot (Filesystem Hierarchy Standard 3.0,
#: 3.15).
FOLDER = Path("/run/vmm-msi")
_RUNTIME_VARIABLE = "XDG_RUNTIME_DIR"
#: Seconds to wait until another process releases the lock.
TIMEOUT_S = 60.0
_POLL_S = 0.01


@contextlib.contextmanager
def held(host: str, timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """Hold the lock of ``host``; wait until no other process holds it.

    The kernel releases the lock when its process exits (flock(2)).

    :param host: name of the machine that libvirt's daemon runs on.
    :param timeout_s: seconds to wait for the lock.
    :raise HypervisorError: if the wait takes too long, or the lock file cannot be used.
    """
    digest = hashlib.sha256(host.encode()).hexdigest()[:16]
    doing = f"locking the guests of {host}"
    path = _folder(doing) / f"{digest}.lock"
    deadline = time.monotonic() + timeout_s
    try:
        while (descriptor := _try(path)) is None:
            if time.monotonic() > deadline:
                raise HypervisorError(
                    f"{doing}: another process has locked {path} for more than {timeout_s:.0f} s; "
                    f"fuser {path} shows which"
                )
            time.sleep(_POLL_S)
    except OSError as error:
        raise HypervisorError(
            f"{doing}: {path}: {error.strerror}; it must be a regular file of the caller or of "
            "root; remove it"
        ) from error
    try:
        yield
    finally:
        # Closing alone would not release it while a forked child has the file open.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _folder(doing: str) -> Path:
    """Return the folder of the caller's lock files; create it.

    :raise HypervisorError: when another user may change it, or it cannot be used.
    """
    folder = FOLDER
    if os.geteuid() != 0:
        runtime = Path(os.environ.get(_RUNTIME_VARIABLE) or f"/run/user/{os.geteuid()}")
        if not runtime.is_absolute() or not runtime.is_dir():
            raise HypervisorError(
                f"{doing}: there is no folder {runtime} for the lock; set {_RUNTIME_VARIABLE} to "
                "a folder of your own"
            )
        folder = runtime / "vmm-msi"
    try:
        # Others may pass root's: the lab has folders in it.
        folder.mkdir(mode=0o711, exist_ok=True)
        weak = ownership.weakness(folder)
    except OSError as error:
        raise HypervisorError(f"{doing}: {folder}: {error.strerror}") from error
    if weak is not None:
        raise HypervisorError(
            f"{doing}: {weak}; the lock needs a folder that only root and you may change"
        )
    return folder


def _try(path: Path) -> int | None:
    """Return the locked file; None if another process holds the lock, or removed the file."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.lstat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _open(path: Path) -> int:
    """Open or create a lock file.

    :raise OSError: when it is another user's, another user may open it, or it is not a file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    problem = _problem(os.fstat(descriptor))
    if problem:
        os.close(descriptor)
        raise OSError(errno.EPERM, problem)
    return descriptor


def _problem(status: os.stat_result) -> str:
    """Return why a file cannot be used as a lock; empty if it can."""
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_uid not in ownership.trusted_owners():
        return f"belongs to user {status.st_uid}"
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return "other users may open it"
    return "has several names" if status.st_nlink > 1 else ""
