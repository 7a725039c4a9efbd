"""Lines of a log, without the prefixes that the log adds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Limit in bytes of a text; the kernel's own log has up to a few MiB.
MAX_BYTES = 16 << 20
#: Limit in characters of a line; a record of the kernel has 2048 at most.
MAX_LINE = 4096

_CLOCK = r"\d{1,2}:\d\d:\d\d(?:[.,]\d{1,9})?"
_TIME = rf"(?:[A-Z][a-z]{{2}} {{1,2}}\d{{1,2}} {_CLOCK}|\d{{4}}-\d\d-\d\d[T ]{_CLOCK}\S{{0,6}})"
#: Prefixes of a message; each is removed once, in this order.
_PREFIXES = tuple(
    re.compile(pattern)
    for pattern in (
        # A record of /dev/kmsg: priority, number, time, flags.
        r"\d{1,3},\d{1,20},\d{1,20},[^;]{1,40};",
        # syslog and journalctl, with a time in either form: host, program, process.
        rf"(?:<\d{{1,3}}>)?{_TIME} \S{{1,255}} [\w./-]{{1,64}}(?:\[\d{{1,10}}\])?: ",
        # dmesg --decode: facility and level.
        r"[a-z]{3,8} {0,4}:[a-z]{3,6} {0,4}: ",
        r"<\d{1,3}>",
        # dmesg, with a time of any form: [   12.345678], [Wed Nov 25 00:29:56 2026].
        r"\[[ \w:.+-]{1,40}\](?:\[ *[TC]\d{1,10}\])? ",
    )
)

#: Colours of a terminal, as in ``dmesg --color=always``.
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]")
#: Characters that control a terminal.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Line:
    """A line.

    :param number: its number in the text, from 1.
    :param text: the message, with a tab at its start if it has one.
    """

    number: int
    text: str


def decode(data: bytes, source: str) -> str:
    """Decode a text; bytes that are not UTF-8 are replaced.

    :raise InputError: if it has more than :data:`MAX_BYTES`.
    """
    if len(data) > MAX_BYTES:
        raise InputError(
            f"reading {source}: more than {MAX_BYTES >> 20} MiB; use a part of it: "
            f"tail -c {MAX_BYTES >> 20}M"
        )
    return data.decode("utf-8", "replace")


def lines(text: str) -> Iterator[Line]:
    """Yield the lines that are not blank, without the prefixes of the log."""
    for number, raw in enumerate(text.split("\n"), 1):
        short = raw[:MAX_LINE].rstrip("\r ")
        if not short.strip():
            continue
        if not short.isprintable():
            short = _CONTROL.sub("?", _COLOUR.sub("", short))
        yield Line(number, message(short))


def message(text: str) -> str:
    """Return the message of a line, without time, host and name of the program."""
    for prefix in _PREFIXES:
        match = prefix.match(text)
        if match is not None:
            text = text[match.end() :]
    return text
