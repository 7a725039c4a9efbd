"""Call the agent in the emulated host from outside.

QEMU provides the agent's port as a unix socket and serves one client at a time; a lock beside the
socket makes other clients wait.
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
    :param wait_s: how long to wait for another client to finish, in seconds.
    """

    def __init__(self, path: Path, wait_s: float = 600) -> None:
        self._path = path
        self._wait_s = wait_s
        self._socket: socket.socket | None = None
        self._lock: BinaryIO | None = None
        self._lines = protocol.LineReader()
        # Ids that no earlier client has used: answers to that client may still arrive.
        self._ids = itertools.count(secrets.randbelow(1 << 40) << 12)

    def __enter__(self) -> Self:
        try:
            self._acquire_lock()
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(os.fspath(self._path))
        except OSError as error:
            self.close()
            raise LabError(
                f"talking to the emulated host at {self._path}: {error.strerror or error}; "
                "vmm-msi lab status shows whether it is running"
            ) from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and release the lock for the next client."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _acquire_lock(self) -> None:
        self._lock = self._path.with_name(f"{self._path.name}.lock").open("ab")
        deadline = time.monotonic() + self._wait_s
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() > deadline:
                raise LabError(
                    f"talking to the emulated host at {self._path}: still in use by another "
                    f"command after {self._wait_s:.0f} s; wait for it, or run vmm-msi lab down"
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
        """Send a request and return the agent's answer, a JSON value.

        :param timeout_s: time limit between two lines of the agent, in seconds.
        :param on_progress: called with (done, total) of long work.
        :raise BackendError: the kernel's refusal.
        :raise RefusedError: a refusal that does not come from a kernel.
        :raise LabError: when the agent does not answer or the request fails.
        """
        number = next(self._ids)
        self._send(protocol.encode({"id": number, "do": do, "with": arguments}), timeout_s, do)
        deadline = time.monotonic() + timeout_s
        while True:
            for line in self._receive(deadline, do):
                answer = self._own_answer(line, number)
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
    def _own_answer(line: bytes | None, number: int) -> dict[str, Any] | None:
        """Return the answer on a line, None if it belongs to another request."""
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
                f"emulated host, {do}: {len(data)} bytes exceed the {protocol.MAX_LINE} "
                "bytes of one request; send less at a time"
            )
        self._socket.settimeout(timeout_s)
        try:
            # An empty line ends an unfinished request of an earlier client.
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
                f"emulated host, {do}: no answer in time; vmm-msi lab console --log shows "
                "its kernel's output"
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
        f"emulated host, {do}: it stopped; vmm-msi lab console --log shows its kernel's last output"
    )


def _error(do: str, answer: Any) -> Exception:  # noqa: ANN401
    """Return the exception for an error in the agent's answer."""
    answer = answer if isinstance(answer, dict) else {}
    text = str(answer.get("text", "no message"))
    match answer.get("kind"):
        case "backend":
            number, inside = answer.get("errno"), answer.get("inside")
            return BackendError(
                number if isinstance(number, int) else errno.EIO,
                text,
                inside=inside if isinstance(inside, int) else None,
            )
        case "refused":
            return RefusedError(text)
        case _:
            return LabError(f"emulated host, {do}: {text}")
