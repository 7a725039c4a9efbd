"""Notifications by sd_notify(3), received on a socket such as systemd's."""

from __future__ import annotations

import os
import socket

import pytest

from vmm_msi.watch.systemd_notify import Notifier, passed_descriptor


@pytest.fixture(params=["path", "abstract"])
def listening(request, tmp_path):
    """Yield a socket and the value of $NOTIFY_SOCKET for it."""
    name = f"@vmm-msi-test-{os.getpid()}" if request.param == "abstract" else f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name[1:] if name.startswith("@") else name)
        receiver.settimeout(10)
        yield receiver, name


def test_notifications(listening):
    receiver, name = listening
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready()
    assert receiver.recv(4096) == b"READY=1"
    notifier.alive()
    assert receiver.recv(4096) == b"WATCHDOG=1"
    notifier.status("one")
    notifier.status("one")
    notifier.status("two")
    assert [receiver.recv(4096), receiver.recv(4096)] == [b"STATUS=one", b"STATUS=two"]
    notifier.reloading()
    first, second = receiver.recv(4096).split(b"\n")
    assert first == b"RELOADING=1"
    assert second.startswith(b"MONOTONIC_USEC=")
    notifier.stopping()
    assert receiver.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("name", ["", "/no/such/socket"])
def test_a_missing_socket_is_ignored(name):
    Notifier({"NOTIFY_SOCKET": name}).ready()
    Notifier({}).ready()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
        ({}, None),
    ],
)
def test_the_watchdog(environment, seconds):
    assert Notifier(environment).watchdog == seconds


@pytest.mark.parametrize(
    ("names", "descriptor"),
    [("msi-bindings", 3), ("a:msi-bindings", 4), ("other", None), ("", None)],
)
def test_a_file_that_systemd_passes(names, descriptor):
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": names}
    assert passed_descriptor(environment, "msi-bindings") == descriptor
    assert passed_descriptor({**environment, "LISTEN_PID": "1"}, "msi-bindings") is None
    assert passed_descriptor({}, "msi-bindings") is None
