"""Define the messages between the lab and the agent in its emulated host: one JSON object per line.

::

    {"v": 1, "id": 7, "do": "hello", "with": {}}
    {"v": 1, "id": 7, "progress": [3, 10]}
    {"v": 1, "id": 7, "ok": {…}}
    {"v": 1, "id": 7, "error": {"kind": "backend", "errno": 22, "text": "…"}}

``id``, a whole number or a string, is chosen by the caller and repeated in every line of the
answer, so that the caller can ignore answers to an earlier one. See docs/lab-internals.md.
"""

from __future__ import annotations

import json
from typing import Any

#: Incremented when a verb changes its meaning; both sides must agree on it.
VERSION = 1

#: Longest line in bytes, the line break included; a longer one is an error.
MAX_LINE = 16 << 20

#: Name of the virtio-serial port.
PORT = "vmm-msi.agent"

#: Folder of additional programs in the emulated host.
PROGRAMS = "usr/local/bin"


def encode(message: dict[str, Any]) -> bytes:
    """Return the line for a message."""
    return json.dumps({"v": VERSION, **message}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Read a line.

    :raise ValueError: when it is not a JSON object of this version, is nested too deeply or has an
        id that is neither a number nor a string.
    """
    try:
        message = json.loads(line)
    except RecursionError:
        raise ValueError("a message is nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("a message is a JSON object")  # noqa: TRY004
    if message.get("v") != VERSION:
        raise ValueError(f"protocol version {message.get('v')!r}: this side speaks {VERSION}")
    if not isinstance(message.get("id"), int | str | None):
        raise ValueError("the id of a message is a number or a string")  # noqa: TRY004
    return message


class LineReader:
    """Split received data into lines, in bounded memory.

    A line longer than :data:`MAX_LINE` is dropped and returned as ``None``.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._dropping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Add received data and return the lines that are now complete."""
        lines: list[bytes | None] = []
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._add(piece)
            lines.append(None if self._dropping else b"".join(self._parts))
            self.clear()
        self._add(rest)
        return lines

    def clear(self) -> None:
        """Drop an incomplete line."""
        self._parts.clear()
        self._size = 0
        self._dropping = False

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size >= MAX_LINE:
            self._dropping = True
            self._parts.clear()
        elif piece:
            self._parts.append(piece)
