"""Notify systemd of the state of the service.

The protocol is that of sd_notify(3): a datagram of ``NAME=value`` lines to the socket in
$NOTIFY_SOCKET, which is a path or, after ``@``, an abstract name.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


#: SD_LISTEN_FDS_START.
_FIRST_FD = 3


class Notifier:
    """Send notifications to the service manager; without $NOTIFY_SOCKET, send nothing.

    :param environment: the environment of this process.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = ""
        #: Seconds within which systemd expects a sign of life; None if it expects none.
        self.watchdog = _watchdog(environment)

    def send(self, **values: str) -> None:
        """Send values by name; ignore a service manager that does not listen."""
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in values.items())
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, _DATAGRAM) as sender:
            sender.settimeout(_SEND_S)
            sender.sendto(message.encode(), self._address)

    def ready(self) -> None:
        """Report that the service is ready."""
        self.send(READY="1")

    def reloading(self) -> None:
        """Report that the configuration is being reloaded, until :meth:`ready`."""
        self.send(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000))

    def stopping(self) -> None:
        """Report that the service is stopping."""
        self.send(STOPPING="1")

    def alive(self) -> None:
        """Send a sign of life for the watchdog."""
        self.send(WATCHDOG="1")

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        if text != self._status:
            self._status = text
            self.send(STATUS=text)


_SEND_S = 1.0
_DATAGRAM = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """Return the watchdog's interval in seconds; None if it is unset or for another process.

    sd_watchdog_enabled(3).
    """
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environment.get("WATCHDOG_USEC", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text)):
        return None
    return int(text) / 1e6


def passed_descriptor(environment: Mapping[str, str], name: str) -> int | None:
    """Return the file descriptor that systemd passed under a name; None if it passed none.

    The protocol is that of sd_listen_fds_with_names(3); ``OpenFile=`` of a unit uses it.

    :param environment: the environment of this process.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    return _FIRST_FD + names.index(name) if name in names else None
