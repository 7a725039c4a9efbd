"""Commands that run in the root of a lab daemon, next to its libvirtd."""

from __future__ import annotations

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/tmp"}  # noqa: S108 - the root's own


def inside_of(daemon, *words):
    """Return the command line that runs ``words`` in the root of ``daemon``."""
    enter = ["nsenter", f"--target={daemon.pid}", "--mount", "chroot", str(daemon.run / "root")]
    return [*enter, *map(str, words)]
