"""Commands that run beside a lab daemon's libvirtd, in its root."""

from __future__ import annotations

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/tmp"}  # noqa: S108 - the root's own


def inside_of(daemon, *words):
    """Return the words that run ``words`` in the root of ``daemon``, which has the same share."""
    enter = ["nsenter", f"--target={daemon.pid}", "--mount", "chroot", str(daemon.run / "root")]
    return [*enter, *map(str, words)]
