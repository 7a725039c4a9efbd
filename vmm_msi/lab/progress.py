"""Tell a person what a long piece of work is doing, on a terminal or in a log."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

_REDRAW_S = 0.1


class Progress:
    """A line for each stage; on a terminal, also what it is at right now.

    :param stream: where to write; ``None`` writes nothing.
    :param title: put before every line.
    """

    def __init__(self, stream: TextIO | None, title: str = "lab") -> None:
        self._stream = stream
        self._title = title
        self._live = stream is not None and stream.isatty()
        self._start = time.monotonic()
        self._drawn = 0.0

    def stage(self, what: str) -> None:
        """Say that the next stage begins."""
        if self._stream is not None:
            self.clear()
            seconds = time.monotonic() - self._start
            print(f"{self._title}: [{seconds:4.0f} s] {what}", file=self._stream, flush=True)

    def step(self, what: str) -> None:
        """Show one step of the current stage; on a terminal only, and only the latest."""
        now = time.monotonic()
        if self._stream is None or not self._live or now - self._drawn < _REDRAW_S:
            return
        self._drawn = now
        width = shutil.get_terminal_size().columns - 1
        text = f"    {' '.join(what.split())}"[:width]
        print(f"\r\x1b[K{text}", end="", file=self._stream, flush=True)

    def clear(self) -> None:
        """Take the step line off the terminal."""
        if self._stream is not None and self._live:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
