r"""Write text for people: the one place where the product prints to a terminal.

Names, log lines and messages come from files, guests, firmware, libvirt and plugins. A terminal
obeys some characters in them: escape sequences, the C1 controls, carriage returns, and Unicode's
bidirectional overrides, which show text in an order other than its own. None of them is printed;
each is shown as an escape such as ``\x1b``.

A part of a line may have a tone, such as that of a failure. It is shown as a colour on a terminal,
and never the only sign of what it means. ``--color`` decides, then NO_COLOR, then FORCE_COLOR and
CLICOLOR_FORCE, then CLICOLOR=0 and TERM=dumb, each as https://no-color.org,
https://force-color.org and https://bixense.com/clicolors describe them.

Documents for programs (XML, JSON, scripts) pass unchanged to a file or a pipe.
"""

from __future__ import annotations

import contextlib
import os
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Width of text where neither a terminal nor COLUMNS has another.
WIDTH: Final = 80

# ECMA-48: select graphic rendition, and reset it.
_SGR = {"good": "32", "warning": "33", "bad": "31", "quiet": "2"}
_RESET = "\x1b[0m"

# ECMA-48: return to the first column and erase to the end of the line.
_ERASE_LINE = "\r\x1b[K"


class Tone(StrEnum):
    """What a text means for the reader; a colour in HTML and on a terminal, never the only sign."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"
    QUIET = "quiet"


class Color(StrEnum):
    """Values of ``--color``."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


# What --color says in this process.
_color = Color.AUTO


def choose_color(color: Color) -> None:
    """Decide whether this process prints colours."""
    global _color
    _color = color


def has_color(stream: TextIO) -> bool:
    """Return whether tones are shown as colours on ``stream``."""
    if _color is not Color.AUTO:
        return _color is Color.ALWAYS
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR") or os.environ.get("CLICOLOR_FORCE", "0") != "0":
        return True
    off = os.environ.get("CLICOLOR") == "0" or os.environ.get("TERM") == "dumb"
    return not off and stream.isatty()


def text_width(stream: TextIO | None = None) -> int:
    """Return how many columns text has on ``stream``: COLUMNS, those of a terminal, or 80.

    :param stream: default: standard output.
    """
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and int(columns[:9]) > 0:
        return int(columns[:9])
    with contextlib.suppress(OSError, ValueError):
        size = os.get_terminal_size((stream or sys.stdout).fileno())
        return size.columns or WIDTH
    return WIDTH


class Line(str):
    """A line whose parts may have tones; as a string it has none.

    :param parts: texts with their tones, from left to right.
    """

    __slots__ = ("parts",)
    parts: tuple[tuple[str, Tone | None], ...]

    def __new__(cls, parts: Iterable[tuple[str, Tone | None]]) -> Line:
        """Return the texts as one, and keep the parts."""
        kept = tuple(parts)
        line = super().__new__(cls, "".join(text for text, _tone in kept))
        line.parts = kept
        return line

    @property
    def has_tones(self) -> bool:
        """Whether a part has a tone."""
        return any(tone is not None for _text, tone in self.parts)


def printable(text: object) -> str:
    """Return ``text`` as one line that a terminal shows and does not obey.

    A character that Python does not count as printable becomes its escape: control characters, also
    line breaks and tabs, format characters such as U+202E, and the lone surrogates by which Python
    keeps file names that are not UTF-8.
    """
    line = str(text)
    return line if line.isprintable() else "".join(map(_escaped, line))


def _escaped(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def print_line(text: object = "", stream: TextIO | None = None) -> None:
    """Print one line.

    :param stream: default: standard output.
    """
    out = stream or sys.stdout
    if isinstance(text, Line) and text.has_tones and has_color(out):
        print("".join(_painted(part, tone) for part, tone in text.parts), file=out)
    else:
        print(printable(text), file=out)


def _painted(text: str, tone: Tone | None) -> str:
    shown = printable(text)
    return shown if tone is None or not text else f"\x1b[{_SGR[tone]}m{shown}{_RESET}"


def print_lines(lines: Iterable[object], stream: TextIO | None = None) -> None:
    """Print lines, each while the iterable yields it.

    :param stream: default: standard output.
    """
    for line in lines:
        print_line(line, stream)


def print_error(text: object) -> None:
    """Print one line on standard error; nothing where that is closed or full."""
    # sys.stderr is None if it is closed, which print() takes for standard output.
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print_line(text, sys.stderr)


def print_document(text: str) -> None:
    """Print a document for programs on standard output, unchanged and as UTF-8.

    On a terminal it is text for people: line breaks and tabs stay, and every other character is
    shown as by :func:`printable`.
    """
    if sys.stdout.isatty():
        sys.stdout.write("".join(c if c in "\n\t" else _escaped(c) for c in text))
    else:
        write_bytes(text.encode(errors="surrogateescape"))


def write_bytes(data: bytes, stream: TextIO | None = None) -> None:
    """Write bytes to a stream, by default standard output; to a terminal as :func:`print_lines`."""
    out = sys.stdout if stream is None else stream
    if out.isatty():
        print_lines(data.decode("utf-8", "replace").splitlines(), out)
        return
    out.flush()
    out.buffer.write(data)
    out.buffer.flush()


def discard_output() -> None:
    """Discard what is still to be written to standard output, the flush at exit included."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class StatusLine:
    """A line on a terminal that the next one replaces; nothing is shown anywhere else.

    :param stream: where to show it; None shows nothing, nor does a terminal that cannot erase
        (TERM=dumb).
    """

    def __init__(self, stream: TextIO | None) -> None:
        is_live = stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
        self._stream = stream if is_live else None

    @property
    def is_live(self) -> bool:
        """Whether the line is seen."""
        return self._stream is not None

    def show(self, text: object) -> None:
        """Replace the line."""
        self._write(printable(text))

    def clear(self) -> None:
        """Remove the line."""
        self._write("")

    def _write(self, text: str) -> None:
        if self._stream is not None:
            print(f"{_ERASE_LINE}{text}", end="", file=self._stream, flush=True)
