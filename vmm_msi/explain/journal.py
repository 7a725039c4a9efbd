"""Records with fields, as journalctl, dmesg and containers write them: JSON, or a field per line.

``journalctl -o json``, ``json-seq`` and ``json-sse`` have a JSON object per line; ``json-pretty``
and ``dmesg --json`` have a line per field, as have ``journalctl -o export`` and ``verbose``, which
do not use JSON. systemd ``src/shared/logs-show.c``; util-linux ``sys-utils/dmesg.c``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from vmm_msi.explain.log_prefixes import facility_name, writer_of

#: Characters of a record that is one line; a record of the kernel has about 1,500.
MAX_RECORD = 1 << 16
#: The message: of journalctl, of dmesg and KubeVirt, of other programs, of container runtimes.
_MESSAGES = ("MESSAGE", "msg", "message", "log")
_FIELDS = {
    *("_TRANSPORT", "SYSLOG_IDENTIFIER", "SYSLOG_FACILITY", "_COMM", "_PID", "SYSLOG_PID"),
    *("fac", "pri", "component", *_MESSAGES),
}
_ONE_LINE = re.compile(r"(?:\x1e|data: )?(\{.*\})[\s,]*", re.DOTALL)
_OPENING = re.compile(r"[\s\[\]},]*\{\s*")
_CLOSING = re.compile(r"\s*\}[\s,]*")
_JSON_FIELD = re.compile(r'\s*"(\w{1,64})"\s{0,4}:\s{0,20}(".*"|[\d.+-]{1,30})\s{0,4},?\s*')
_PLAIN_FIELD = re.compile(r"(\s*)(_{0,2}[A-Z][A-Z0-9_]{1,63})=(.*)", re.DOTALL)
#: The first line of a record of ``journalctl -o verbose``.
_VERBOSE = re.compile(r"\S{2,10} \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{1,6} \S{1,8} \[s=[0-9a-f]")


@dataclass(frozen=True, slots=True)
class Record:
    """The message of a record, which may have several lines.

    :param number: the line that the message is in.
    :param writer: the program that wrote it, if it is not the kernel.
    """

    number: int
    message: str
    writer: str


def read_line(number: int, line: str) -> Record | None:
    """Read a record of one line.

    :return: None if the line is not a JSON object with a message.
    """
    match = _ONE_LINE.fullmatch(line) if "{" in line[:8] else None
    if match is None or len(line) > MAX_RECORD:
        return None
    try:
        fields = msgspec.json.decode(match[1])
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    return _record(number, {key: _text(value) for key, value in fields.items()})


class FieldReader:
    """Reads records that have a field per line."""

    def __init__(self) -> None:
        self._fields: dict[str, str] | None = None
        self._number = 0

    def line(self, number: int, line: str) -> tuple[bool, Record | None]:
        """Read a line.

        :return: whether the line belongs to a record, and the record that it completes, if any.
        """
        if _VERBOSE.match(line) or _OPENING.fullmatch(line) or line.startswith("__CURSOR="):
            record = self.end()
            self._fields = {}
            return True, record
        if self._fields is None:
            return False, None
        field = _field(line)
        if field is None:
            return bool(_CLOSING.fullmatch(line)), self.end()
        name, value = field
        if name in _FIELDS:
            self._fields[name] = value
            if name in _MESSAGES:
                self._number = number
        return True, None

    def end(self) -> Record | None:
        """Return the record that is incomplete at the end of the text, if it has a message."""
        fields, self._fields = self._fields, None
        return None if fields is None else _record(self._number, fields)


def _field(line: str) -> tuple[str, str] | None:
    """Return the field in a line, if the line has one."""
    match = _JSON_FIELD.fullmatch(line)
    if match is not None:
        try:
            return match[1], _text(msgspec.json.decode(match[2]))
        except (msgspec.DecodeError, RecursionError):
            return None
    match = _PLAIN_FIELD.fullmatch(line)
    if match is not None:
        return match[2], match[3]
    # A part of a value that json-pretty writes in several lines.
    return ("", "") if line.lstrip()[:1] in tuple('"[]0123456789') else None


def _text(value: object) -> str:
    """Return the text of a field: a string, a number, bytes as numbers, or the last of several."""
    if isinstance(value, list):
        if value and all(isinstance(byte, int) and 0 <= byte <= 0xFF for byte in value):
            return bytes(value).decode("utf-8", "replace")
        return _text(value[-1]) if value and isinstance(value[-1], str | int) else ""
    return str(value) if isinstance(value, str | int | float) else ""


def _record(number: int, fields: dict[str, str]) -> Record | None:
    message = next((fields[name] for name in _MESSAGES if fields.get(name)), None)
    return None if message is None else Record(number, message, _writer(fields))


def _writer(fields: dict[str, str]) -> str:
    """Return the program that wrote a record; empty for the kernel, and if it is unknown.

    journald sets the fields with an underscore itself; a program may send any of the others.
    """
    transport = fields.get("_TRANSPORT", "")
    facility = fields.get("SYSLOG_FACILITY") or fields.get("fac") or ""
    if (priority := fields.get("pri", "")).isdecimal() and not facility:
        facility = str(int(priority[:9]) >> 3)
    if transport == "kernel" and facility in ("", "0"):
        return ""
    program = fields.get("SYSLOG_IDENTIFIER") or fields.get("_COMM") or fields.get("component", "")
    process = fields.get("_PID") or fields.get("SYSLOG_PID") or ""
    writer = writer_of(program, process)
    if writer or (not transport and facility in ("", "0", "kern")):
        return writer
    if facility.isdecimal() and len(facility) < 4:
        facility = facility_name(int(facility))
    return f"a program (transport {transport})" if transport else f"a program (facility {facility})"
