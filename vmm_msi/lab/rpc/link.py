"""Calls to the agent in the emulated host, from outside.

QEMU offers the agent's port as a unix socket and serves one client at a time; a lock beside the
socket makes the others wait their turn.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any, Self

from vmm_msi.errors import BackendError, LabError, RefusedError
from vmm_msi.lab.rpc import protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

_CHUNK = 1 << 16


class AgentLink:
    """A connection to the agent; a context manager.

    :param path: the socket.
    :param wait_s: how long to wait for another client to be done.
    """

    def __init__(self, path: Path, wait_s: float = 600) -> None:
        self._path = path
        self._wait_s = wait_s
        self._socket: socket.socket | None = None
        self._lock: BinaryIO | None = None
        self._lines = protocol.LineReader()
        # Ids that no earlier client has used: lines that were meant for it may still arrive.
        self._ids = itertools.count(secrets.randbelow(1 << 40) << 12)

    def __enter__(self) -> Self:
        try:
            self._take_turn()
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(os.fspath(self._path))
        except OSError as error:
            self.close()
            raise LabError(
                f"talking to the emulated host at {self._path}: {error.strerror or error}; "
                "vmm-msi lab status tells whether it runs"
            ) from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and let the next client have its turn."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_turn(self) -> None:
        self._lock = self._path.with_name(f"{self._path.name}.lock").open("ab")
        deadline = time.monotonic() + self._wait_s
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() > deadline:
                raise LabError(
                    f"talking to the emulated host at {self._path}: another command has been at "
                    f"work for {self._wait_s:.0f} s; wait for it to end, or vmm-msi lab down"
                )
            time.sleep(0.05)

    def call(
        self,
        do: str,
        /,
        *,
        timeout_s: float = 60,
        on_progress: Callable[[int, int], None] | None = None,
        **arguments: object,
    ) -> Any:  # noqa: ANN401
        """Let the agent do something and return what it answers, a JSON value.

        :param timeout_s: how long it may be silent.
        :param on_progress: told how far long work is, as (done, total).
        :raise BackendError: the kernel's refusal.
        :raise RefusedError: the refusal of something that is no kernel.
        :raise LabError: when the agent does not answer or cannot do it.
        """
        number = next(self._ids)
        self._send(protocol.encode({"id": number, "do": do, "with": arguments}), timeout_s, do)
        deadline = time.monotonic() + timeout_s
        while True:
            for line in self._receive(deadline, do):
                answer = self._mine(line, number)
                if answer is None:
                    continue
                if "progress" in answer:
                    deadline = time.monotonic() + timeout_s
                    match answer["progress"]:
                        case [int(done), int(total)] if on_progress is not None:
                            on_progress(done, total)
                elif "error" in answer:
                    raise _error(do, answer["error"])
                else:
                    return answer.get("ok")

    @staticmethod
    def _mine(line: bytes | None, number: int) -> dict[str, Any] | None:
        """Return the answer on a line, None where it is not to this request."""
        try:
            answer = protocol.decode(line or b"")
        except ValueError:
            return None
        return answer if answer.get("id") == number else None

    def _send(self, data: bytes, timeout_s: float, do: str) -> None:
        if self._socket is None:
            raise LabError(f"emulated host, {do}: the link is closed; use it in its with block")
        if len(data) > protocol.MAX_LINE:
            raise LabError(
                f"emulated host, {do}: {len(data)} bytes are more than the {protocol.MAX_LINE} "
                "that fit into one request; send less at a time"
            )
        self._socket.settimeout(timeout_s)
        try:
            # An empty line first ends whatever an earlier client left unfinished.
            self._socket.sendall(b"\n" + data)
        except ConnectionError as error:
            raise _gone(do) from error
        except OSError as error:
            raise LabError(f"emulated host, {do}: {error}") from error

    def _receive(self, deadline: float, do: str) -> list[bytes | None]:
        if self._socket is None:
            raise LabError(f"emulated host, {do}: the link is closed; use it in its with block")
        try:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            data = self._socket.recv(_CHUNK)
        except TimeoutError:
            raise LabError(
                f"emulated host, {do}: no answer in time; vmm-msi lab console --log shows what "
                "its kernel said"
            ) from None
        except ConnectionError as error:
            raise _gone(do) from error
        except OSError as error:
            raise LabError(f"emulated host, {do}: {error.strerror or error}") from error
        if not data:
            raise _gone(do)
        return self._lines.feed(data)


def _gone(do: str) -> LabError:
    return LabError(
        f"emulated host, {do}: it is gone; vmm-msi lab console --log shows what its kernel "
        "said last"
    )


def _error(do: str, told: Any) -> Exception:  # noqa: ANN401
    """Return the exception for an error that the agent told."""
    told = told if isinstance(told, dict) else {}
    text = str(told.get("text", "no message"))
    match told.get("kind"):
        case "backend":
            number = told.get("errno")
            return BackendError(number if isinstance(number, int) else errno.EIO, text)
        case "refused":
            return RefusedError(text)
        case _:
            return LabError(f"emulated host, {do}: {text}")
