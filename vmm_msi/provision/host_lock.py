"""Changes of guests on one host take turns.

libvirt redefines a domain without looking at what it was (there is no compare-and-swap), so two
programs that read, edit and define would lose one of the edits, and could give one device to two
guests. All of vmm-msi on one machine takes turns by a lock file for each host that is changed.
Other programs, and vmm-msi on another machine, do not know of it: what they change between our
reading and our defining, a few milliseconds, is lost.
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

#: Where lock files are: a folder that everybody may write to and that is empty after a reboot
#: (Filesystem Hierarchy Standard 3.0, 3.15 and 5.9).
FOLDER = Path("/run/lock")
#: Seconds to wait for somebody else's turn to end.
TIMEOUT_S = 60.0
_POLL_S = 0.01


@contextlib.contextmanager
def held(host: str, timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """Wait until no other change of a guest on ``host`` is under way, and keep others from one.

    The lock is the kernel's (flock(2)): it ends with the process that has it.

    :param host: name of the machine that libvirt's daemon runs on.
    :raise HypervisorError: when the wait takes too long, or the lock file cannot be used.
    """
    digest = hashlib.sha256(host.encode()).hexdigest()[:16]
    path = FOLDER / f"vmm-msi-{digest}.lock"
    doing = f"waiting for the turn to change guests on {host}"
    deadline = time.monotonic() + timeout_s
    try:
        while (descriptor := _try(path)) is None:
            if time.monotonic() > deadline:
                raise HypervisorError(
                    f"{doing}: somebody else has {path} locked for more than {timeout_s:.0f} s; "
                    f"fuser {path} tells who"
                )
            time.sleep(_POLL_S)
    except OSError as error:
        raise HypervisorError(
            f"{doing}: {path}: {error.strerror}; valid is a plain file that everybody may lock, in "
            f"a folder {FOLDER} that is there"
        ) from error
    try:
        yield
    finally:
        # By closing it would end only when those close it who were forked meanwhile.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _try(path: Path) -> int | None:
    """Return the file that was locked; None when somebody else has it, or removed it just now."""
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
            raise OSError(0, "it is no plain file")
        with contextlib.suppress(FileExistsError):
            # Whoever is first makes it, whatever the umask; to lock it takes the right to read.
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | flags, 0o444)
            os.fchmod(descriptor, 0o444)
            os.close(descriptor)
    return os.open(path, flags)
