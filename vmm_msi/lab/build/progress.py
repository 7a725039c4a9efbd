"""Show the progress of long work, on a terminal or in a log."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

from vmm_msi.terminal import StatusLine, print_line, printable

if TYPE_CHECKING:
    from typing import TextIO

_REDRAW_S = 0.1
_REPORT_S = 30.0
_BAR = 20
#: The largest share shown before a stage ends: the number of steps is an estimate.
_ALMOST = 0.99


class Progress:
    """A line for each stage; on a terminal also the current step.

    :param stream: output; ``None`` prints nothing.
    :param title: prefix of every line.
    """

    def __init__(self, stream: TextIO | None, title: str = "lab") -> None:
        self._stream = stream
        self._title = title
        self._status = StatusLine(stream)
        self._start = time.monotonic()
        self._drawn = 0.0
        self._told = 0.0

    def stage(self, what: str) -> None:
        """Print that the next stage begins."""
        if self._stream is not None:
            self.clear()
            self._told = time.monotonic()
            seconds = self._told - self._start
            print_line(f"{self._title}: [{seconds:4.0f} s] {what}", self._stream)
            self._stream.flush()

    def step(self, what: str) -> None:
        """Show the current step of the stage, on a terminal only."""
        self._draw(what)

    def count(self, done: int, total: int, what: str) -> None:
        """Show one step of many: a bar on a terminal, elsewhere an occasional line.

        :param total: approximate number of steps.
        """
        share = min(done / total, _ALMOST) if total > 0 else 0.0
        if self._status.is_live:
            filled = int(share * _BAR)
            self._draw(f"[{'#' * filled}{'.' * (_BAR - filled)}] {share:4.0%} {what}")
        elif self._stream is not None and time.monotonic() - self._told >= _REPORT_S:
            self.stage(f"{share:.0%}")

    def clear(self) -> None:
        """Remove the step line from the terminal."""
        self._status.clear()

    def _draw(self, what: str) -> None:
        now = time.monotonic()
        if not self._status.is_live or now - self._drawn < _REDRAW_S:
            return
        self._drawn = now
        width = shutil.get_terminal_size().columns - 1
        self._status.show(printable(f"    {' '.join(what.split())}")[:width])
