"""A lock per host: one change of a guest at a time.

libvirt redefines a domain without comparing it with what it was (it has no compare-and-swap), so
two programs that read, edit and define would lose one of the edits, and could assign one device to
two guests. All processes of vmm-msi on one machine share a lock file for each host that they
change. Other programs, and vmm-msi on other machines, do not use it: a change of theirs between
reading and defining, a few milliseconds, is lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import HypervisorError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Folder of the lock files: every user may write to it, and it is empty after a reboot
#: (Filesystem Hierarchy Standard 3.0, 3.15 and 5.9).
FOLDER = Path("/run/lock")
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
    path = FOLDER / f"vmm-msi-{digest}.lock"
    doing = f"locking the guests of {host}"
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
            f"{doing}: {path}: {error.strerror}; it must be a regular file that every user may "
            f"lock, and the folder {FOLDER} must exist"
        ) from error
    try:
        yield
    finally:
        # Closing alone would not release it while a forked child has the file open.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


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
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    for _attempt in range(2):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, flags)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
            raise OSError(0, "not a regular file")
        with contextlib.suppress(FileExistsError):
            # The first process creates it, whatever its umask; locking takes the right to read.
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | flags, 0o444)
            os.fchmod(descriptor, 0o444)
            os.close(descriptor)
    return os.open(path, flags)
