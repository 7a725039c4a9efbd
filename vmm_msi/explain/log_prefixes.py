"""Prefixes that logs put before a message: time, host, program, facility; and quotation marks.

The prefix shows who wrote a line. Any user may log any text, but not as the kernel: journald,
syslog and /dev/kmsg record the program, its process or a facility other than 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_CLOCK = r"\d{1,2}:\d\d:\d\d"
_FRACTION = r"(?:\.\d{1,9})?"
_ZONE = r"(?:Z|[+-]\d\d:?\d\d)?"
#: A time as syslog and the ``short`` formats of journalctl have it; the month may be localised.
_TIME = (
    rf"(?:\S{{2,10}} {{1,2}}\d{{1,2}} (?:\d{{4}} )?{_CLOCK}{_FRACTION}"
    rf"|(?:\S{{2,5}} )?\d{{4}}-\d\d-\d\d[T ]{_CLOCK}{_FRACTION}{_ZONE}(?: [A-Z]{{1,5}})?"
    r"|\d{9,11}\.\d{1,9})"
)
_PROGRAM = r"[A-Za-z][\w./@-]{0,63}"
_SYSLOG_TEXT = (
    # After a time without a host, dmesg's message of the SMMU's driver also begins with two names.
    rf"{_TIME} (?:(?!arm-smmu-v3 )\S{{0,254}}[^\s:] "
    r"(?:(?P<facility>[a-z]{3,8}\d?)\.[a-z]{3,7} )?"
    rf"(?P<program>{_PROGRAM})(?:\[(?P<process>\d{{1,10}})\])?"
    rf"|(?P<hostless>kernel|{_PROGRAM}(?=\[))(?:\[(?P<hostless_process>\d{{1,10}})\])?):(?: |$)"
)

#: Prefixes of a message; each is removed once, in this order.
_PREFIXES = tuple(
    re.compile(pattern)
    for pattern in (
        # A record of /dev/kmsg: priority, number, time, flags.
        r"(?P<priority>\d{1,3}),\d{1,20},\d{1,20},[^;]{1,40};",
        # RFC 5424: time, host, program, process, id, structured data.
        (
            r"<(?P<priority>\d{1,3})>1 \S{1,40} \S{1,255} (?P<program>\S{1,64}) "
            r"(?P<process>\S{1,128}) \S{1,32} (?:-|\[[^\]]{0,1000}\])(?: |$)"
        ),
        # syslog and journalctl: time, host, program, process. Busybox has the facility, too.
        rf"(?:<(?P<priority>\d{{1,3}})> ?)?{_SYSLOG_TEXT}",
        # journalctl -o short-monotonic and short-delta. A message of dmesg may look the same up to
        # the second name, as in "nvme nvme0: ".
        (
            r"\[ *\d{1,12}\.\d{1,9}(?: <[^>]{1,30}>)?\] \S{1,255} "
            rf"(?P<program>kernel|{_PROGRAM}(?=\[))(?:\[(?P<process>\d{{1,10}})\])?:(?: |$)"
        ),
        # dmesg --time-format iso, and a time that a program put before a line of dmesg.
        rf"(?:\d{{4}}-\d\d-\d\dT{_CLOCK},\d{{1,9}}{_ZONE}|{_TIME}(?= \[| arm-smmu-v3)) ",
        # dmesg --decode: facility and level.
        r"(?P<facility>[a-z]{3,8}\d?) {0,4}:[a-z]{3,6} {0,4}: ",
        r"<(?P<priority>\d{1,3})>",
        # dmesg, with a time of any form: [   12.345678], [Wed Nov 25 00:29:56 2026], [  +0.000009].
        r"\[(?=[^\]]{0,40}\d)[ \w:.,<>+-]{1,40}\](?:\[ *[TC]\d{1,10}\])?(?: |$)",
        # A process at the start of a message: a program wrote it to /dev/kmsg or to a console.
        rf"(?P<program>{_PROGRAM})\[(?P<process>\d{{1,10}})\]: ",
        # The rest of a prefix that was wrapped, or a console that adds no time.
        r"(?P<program>kernel): ",
    )
)
#: Searched for in a line that starts with none of them: after the name of a file by grep, a prompt.
_LATER = re.compile(
    rf"{_TIME} \S{{0,254}}[^\s:] {_PROGRAM}(?:\[\d{{1,10}}\])?: |\[ *\d{{1,9}}\.\d{{3,9}}\]"
)
_CLUE = re.compile(r"\d:\d\d:\d\d|\d{3}\]")
_SEARCHED = 300
#: Characters of a time before its clock.
_BEFORE_CLUE = 32
#: Marks of quoted mail, lists, tables and code; and indentation.
_QUOTE = re.compile(r"(?:[\s>`]|[|*+#-](?=\s)|[A-Za-z]{1,3}>(?=[\s>]))*")
#: Columns of white space with which journalctl begins the further lines of a message.
_INDENTATION = 4

#: The names of syslog's facilities that are not the kernel's (RFC 5424, 6.2.1).
_FACILITIES = ("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron")


@dataclass(frozen=True, slots=True)
class Message:
    """A line without its prefixes.

    :param writer: the program that wrote it, if it is not the kernel; empty if the prefixes do not
        show a writer.
    :param prefixed: it has a prefix, so it does not continue the line before it.
    :param indented: it begins with white space, as the further lines of a message in journalctl.
    """

    text: str
    writer: str = ""
    prefixed: bool = False
    indented: bool = False


def parse(line: str) -> Message:
    """Return the message of a line, and its writer."""
    quote = _QUOTE.match(line)
    start = 0 if quote is None else quote.end()
    indented = line[:start].endswith(" " * _INDENTATION)
    text = line[start:]
    message = _without_prefixes(text, indented=indented)
    clue = None if message.prefixed else _CLUE.search(text, 0, _SEARCHED)
    if clue is None:
        return message
    later = _LATER.search(text, max(0, clue.start() - _BEFORE_CLUE), clue.start() + _SEARCHED)
    return message if later is None else _without_prefixes(text[later.start() :], indented=indented)


def _without_prefixes(text: str, *, indented: bool) -> Message:
    writer = ""
    prefixed = False
    for prefix in _PREFIXES:
        match = prefix.match(text)
        if match is not None:
            text = text[match.end() :]
            prefixed = True
            # A program's name says more than its facility.
            writer = _program(match) or writer or _facility(match)
    return Message(text, writer, prefixed, indented)


def _program(match: re.Match[str]) -> str:
    """Return the program of a prefix; empty for the kernel, which has no process."""
    groups = match.groupdict()
    program = groups.get("program") or groups.get("hostless") or ""
    process = groups.get("process") or groups.get("hostless_process") or ""
    return writer_of(program, process)


def writer_of(program: str, process: str) -> str:
    """Return a writer by its name and process; empty if it is the kernel, or unknown."""
    if process in ("", "-"):
        return "" if program in ("kernel", "-") else program
    return f"{program or 'process'}[{process}]"


def _facility(match: re.Match[str]) -> str:
    """Return the writer by the facility of a prefix; empty for the kernel's, 0."""
    groups = match.groupdict()
    name = groups.get("facility") or ""
    if priority := groups.get("priority"):
        name = facility_name(int(priority) >> 3)
    return "" if name in ("", "kern") else f"a program (facility {name})"


def facility_name(number: int) -> str:
    """Return the name of a facility."""
    return _FACILITIES[number] if number < len(_FACILITIES) else str(number)
