"""Run the service in a process of its own, and collect its log and its notifications."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading

from provision.helpers import HOST_FILE
from waiting import wait_until


def environment(**variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VMM_MSI_", "LIBVIRT_"))}
    return {**kept, **variables}


def command(*arguments, host=True):
    return [
        *(sys.executable, "-m", "vmm_msi", "watch", *map(str, arguments)),
        *(("--host", str(HOST_FILE)) if host else ()),
    ]


def once(*arguments, code=0):
    """Run ``watch --once``; return its log and its standard error."""
    result = subprocess.run(
        command(*arguments, "--once", "--format", "json"),
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=60,
    )
    assert result.returncode == code, result.stderr
    assert result.stderr.count("\n") == bool(code)
    assert "Traceback" not in result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr


class Watch:
    """The service during a ``with`` block; it must exit without a traceback."""

    def __init__(self, *arguments, folder=None, **variables):
        self._arguments = arguments
        self._variables = variables
        self._folder = folder
        self._socket = None
        self.log = []
        self.notifications = []

    def __enter__(self):
        variables = self._variables
        if self._folder is not None:
            path = f"{self._folder}/notify"
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.bind(path)
            variables = {**variables, "NOTIFY_SOCKET": path}
            self._receiver = threading.Thread(
                target=self._receive, args=(self._socket,), daemon=True
            )
            self._receiver.start()
        self.process = subprocess.Popen(
            command(*self._arguments),
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**variables),
            cwd=self._folder,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind, error, trace):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reader.join(10)
            self.process.stderr.close()
            if self._socket is not None:
                # The receiver still reads the datagrams that were sent before.
                self._socket.shutdown(socket.SHUT_RDWR)
                self._receiver.join(10)
                self._socket.close()
        if kind is None:
            assert self.process.returncode in {0, -signal.SIGKILL}, self.log

    def _read(self):
        for line in self.process.stderr:
            self.log.append(json.loads(line) if line.startswith("{") else {"event": line})

    def _receive(self, receiver):
        while message := receiver.recv(4096):
            self.notifications += message.decode().split("\n")

    def logged(self, event, **fields):
        """Return the lines in the log with this event and these fields."""
        return [
            line
            for line in list(self.log)
            if line["event"] == event
            and all(str(line.get(name)) == str(value) for name, value in fields.items())
        ]

    def wait_for(self, event, count=1, **fields):
        """Wait for ``count`` lines with this event and these fields, and return them."""
        assert wait_until(lambda: len(self.logged(event, **fields)) >= count), self.log[-20:]
        return self.logged(event, **fields)

    def signal(self, number):
        self.process.send_signal(number)
