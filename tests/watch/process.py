"""The service in a process of its own, its log and what it tells systemd."""

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


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VMM_MSI_", "LIBVIRT_"))}
    return {**kept, **more}


def command(*words, host=True):
    return [
        *(sys.executable, "-m", "vmm_msi", "watch", *map(str, words)),
        *(("--host", str(HOST_FILE)) if host else ()),
    ]


def once(*words, code=0):
    """Run it once; return its log, or its error."""
    done = subprocess.run(
        command(*words, "--once", "--log-format", "json"),
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == bool(code)
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


class Watch:
    """The service, for as long as a ``with`` block; it ends in order and without a traceback."""

    def __init__(self, *words, folder=None, **more):
        self._words = words
        self._more = more
        self._folder = folder
        self._socket = None
        self.log = []
        self.told = []

    def __enter__(self):
        more = self._more
        if self._folder is not None:
            path = f"{self._folder}/notify"
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.bind(path)
            more = {**more, "NOTIFY_SOCKET": path}
            self._hearer = threading.Thread(target=self._hear, args=(self._socket,), daemon=True)
            self._hearer.start()
        self.process = subprocess.Popen(
            command(*self._words),
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**more),
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
                # What was sent before is still heard.
                self._socket.shutdown(socket.SHUT_RDWR)
                self._hearer.join(10)
                self._socket.close()
        if kind is None:
            assert self.process.returncode in {0, -signal.SIGKILL}, self.log

    def _read(self):
        for line in self.process.stderr:
            self.log.append(json.loads(line) if line.startswith("{") else {"event": line})

    def _hear(self, receiver):
        while words := receiver.recv(4096):
            self.told += words.decode().split("\n")

    def found(self, event, **fields):
        """Return what was logged of an event with these fields."""
        return [
            line
            for line in list(self.log)
            if line["event"] == event
            and all(str(line.get(name)) == str(value) for name, value in fields.items())
        ]

    def wait_for(self, event, count=1, **fields):
        """Wait until that many of an event with these fields were logged, and return them."""
        assert wait_until(lambda: len(self.found(event, **fields)) >= count), self.log[-20:]
        return self.found(event, **fields)

    def signal(self, number):
        self.process.send_signal(number)
