"""Another user of the machine, as an attacker."""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

#: A user id without an account's rights; tests/README.md describes how tests run as root.
OTHER = 65534


def give_away(path, monkeypatch):
    """Let a file, folder or link belong to another user; return that user's id.

    Only root can do so. Otherwise this process gets another id, as far as vmm-msi sees, and what it
    created before belongs to another user.
    """
    user = os.geteuid()
    if user == 0:
        os.chown(path, OTHER, OTHER, follow_symlinks=False)
        return OTHER
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    return user


@contextmanager
def shared_folder(mode=0o1777):
    """Yield a folder that every user may write to; by default as /tmp is."""
    with tempfile.TemporaryDirectory(prefix="vmm-msi-shared-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(mode)
        yield folder


@contextmanager
def attacker(attack):
    """Call ``attack`` again and again in a process of another user, if this one is root's."""
    child = os.fork()
    if not child:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(OTHER)
                os.setuid(OTHER)
            while True:
                attack()
        finally:
            os._exit(1)
    try:
        yield
    finally:
        alive = os.waitpid(child, os.WNOHANG) == (0, 0)
        os.kill(child, signal.SIGKILL) if alive else None
        if alive:
            os.waitpid(child, 0)
        assert alive, "the attack failed to run"
