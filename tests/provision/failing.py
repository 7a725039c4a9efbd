"""Real libvirt objects whose n-th call fails, with an error of libvirt or a real loss."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from contextlib import contextmanager
from pathlib import Path

import libvirt  # noqa: TID251 - its own errors are injected around the real calls

from vmm_msi.libvirt_driver import Connection, connect

#: Messages of libvirt, by code.
CODES = {
    libvirt.VIR_ERR_OPERATION_FAILED: "operation failed: domain is being changed",
    libvirt.VIR_ERR_OPERATION_TIMEOUT: (
        "Timed out during operation: cannot acquire state change lock (held by monitor=remote)"
    ),
    libvirt.VIR_ERR_RPC: "Cannot recv data: Connection reset by peer",
}


class Failing:
    """A libvirt object that counts its calls, and those of the objects they return.

    At call number ``at``, it calls ``fail``, before or after the real call.
    """

    def __init__(self, real, at, after, fail, calls=None):
        self._real, self._at, self._after, self._fail = real, at, after, fail
        self.calls = [] if calls is None else calls

    def __getattr__(self, name):
        method = getattr(self._real, name)

        def call(*arguments):
            self.calls.append(name)
            is_at = len(self.calls) == self._at
            if is_at and not self._after:
                self._fail()
            try:
                result = method(*arguments)
            finally:
                # Also if libvirt refused, such as for an unknown domain.
                if is_at and self._after:
                    self._fail()
            return self._wrapped(result)

        return call

    def _wrapped(self, result):
        if isinstance(result, list):
            return [self._wrapped(item) for item in result]
        if isinstance(result, libvirt.virDomain | libvirt.virNodeDevice):
            return Failing(result, self._at, self._after, self._fail, self.calls)
        return result


def failing_at(connection, at, after, fail):
    """Return ``connection`` with a failing ``at``-th call, and the list of its calls."""
    raw = Failing(connection._raw, at, after, fail)
    return Connection(raw, connection.uri, readonly=False), raw.calls


def raising(error):
    def fail():
        raise error

    return fail


def error_of(connection, code):
    """Return an error that libvirt raised itself, with another code and message."""
    try:
        connection._raw.lookupByUUIDString("no UUID")
    except libvirt.libvirtError as raised:
        _code, domain, _message, level, *rest = raised.err
        raised.err = (code, domain, CODES[code], level, *rest)
        return raised
    raise AssertionError("libvirt took 'no UUID' for a UUID")


def _sockets():
    sockets = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if stat.S_ISSOCK(status.st_mode):
                sockets[status.st_ino] = int(path.name)
    return sockets


@contextmanager
def breakable(uri):
    """Connect to a daemon; yield the connection and a function that breaks its socket."""
    before = _sockets()
    with connect(uri) as connection:
        (descriptor,) = (fd for inode, fd in _sockets().items() if inode not in before)
        with socket.socket(fileno=os.dup(descriptor)) as wire:
            # The path of the daemon shows that this connection is shut down.
            assert Path(wire.getpeername()).name == Path(uri).name
            yield connection, lambda: wire.shutdown(socket.SHUT_RDWR)
