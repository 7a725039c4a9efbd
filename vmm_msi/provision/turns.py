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
PATIENCE_S = 60.0
_POLL_S = 0.01


@contextlib.contextmanager
def turn(host: str, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Wait until no other change of a guest on ``host`` is under way, and keep others from one.

    The lock is the kernel's (flock(2)): it ends with the process that has it.

    :param host: name of the machine that libvirt's daemon runs on.
    :raise HypervisorError: when the wait takes too long, or the lock file cannot be used.
    """
    digest = hashlib.sha256(host.encode()).hexdigest()[:16]
    path = FOLDER / f"vmm-msi-{digest}.lock"
    doing = f"waiting for the turn to change guests on {host}"
    try:
        descriptor = _open(path)
    except OSError as error:
        raise HypervisorError(
            f"{doing}: {path}: {error.strerror}; valid is a plain file that everybody may lock"
        ) from error
    try:
        _wait(descriptor, path, doing, patience_s)
        yield
    finally:
        os.close(descriptor)


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
            # Whoever is first makes it; a lock needs no more than the right to read.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | flags, 0o444))
    return os.open(path, flags)


def _wait(descriptor: int, path: Path, doing: str, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise HypervisorError(
                    f"{doing}: somebody else has {path} locked for more than {patience_s:.0f} s; "
                    f"fuser {path} tells who"
                ) from None
            time.sleep(_POLL_S)
        else:
            return
