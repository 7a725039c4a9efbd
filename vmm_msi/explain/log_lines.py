"""Text from a log, as lines without what the log wrote before them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes of text that are read; the kernel's own log has up to a few MiB.
MAX_BYTES = 16 << 20
#: Characters of a line that are looked at; a record of the kernel has 2048 at most.
MAX_LINE = 4096

_CLOCK = r"\d{1,2}:\d\d:\d\d(?:[.,]\d{1,9})?"
_TIME = rf"(?:[A-Z][a-z]{{2}} {{1,2}}\d{{1,2}} {_CLOCK}|\d{{4}}-\d\d-\d\d[T ]{_CLOCK}\S{{0,6}})"
#: What stands before a message; each is tried once, in this order.
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

#: Colours of a terminal, as ``dmesg --color=always`` has them.
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]")
#: What would do something to the terminal that the line is shown on.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Line:
    """A line.

    :param number: where it is in the text, from 1.
    :param text: the message; a tab at its start is kept.
    """

    number: int
    text: str


def decode(data: bytes, source: str) -> str:
    """Return bytes as text; what is not UTF-8 is shown as such.

    :raise InputError: when there are more than :data:`MAX_BYTES`.
    """
    if len(data) > MAX_BYTES:
        raise InputError(
            f"reading {source}: more than {MAX_BYTES >> 20} MiB; a part of it would do: "
            f"tail -c {MAX_BYTES >> 20}M"
        )
    return data.decode("utf-8", "replace")


def lines(text: str) -> Iterator[Line]:
    """Yield the lines that have something in them, without what the log wrote before them."""
    for number, raw in enumerate(text.split("\n"), 1):
        short = raw[:MAX_LINE].rstrip("\r ")
        if not short.strip():
            continue
        if not short.isprintable():
            short = _CONTROL.sub("?", _COLOUR.sub("", short))
        yield Line(number, message(short))


def message(text: str) -> str:
    """Return what a program said, without time, host and name of the program."""
    for prefix in _PREFIXES:
        found = prefix.match(text)
        if found is not None:
            text = text[found.end() :]
    return text
