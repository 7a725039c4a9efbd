"""Lines of a log in any form: of which encoding, with which prefixes, wrapped by a mailer."""

from __future__ import annotations

import codecs
import html
import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.errors import InputError
from vmm_msi.explain import log_prefixes
from vmm_msi.explain.journal import MAX_RECORD, FieldReader, read_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.explain.journal import Record

#: Limit in bytes of a text; the kernel's own log has up to a few MiB.
MAX_BYTES = 16 << 20
#: Limit in characters of a line; a record of the kernel has 2048 at most.
MAX_LINE = 4096
#: Lines that a mailer may wrap a line into, after the first; and the longest of such lines.
_WRAPPED = 3
_WRAPPED_LENGTH = 200
#: Shortest line that a mailer leaves before a wrap: no word of a message is longer than the rest.
_LEFT = 40
#: Words of an event may have a line each.
_WORD = re.compile(r"(?:0[xX])?[0-9a-fA-F]{8}")
#: Columns of terminals, which break a line anywhere.
_COLUMNS = (80, 100, 120, 132, 160)

_END = re.compile(r"\r+\n?|\n")
#: Colours of a terminal, as in ``dmesg --color=always``; copied text may lack the escape character.
_COLOUR = re.compile(r"(?:\x1b|\\x1b|\\e|\\033|#033|\^\[)\[[0-9;]{0,20}[A-Za-z]|\[[0-9;]{1,20}m")
#: Characters that control a terminal.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_ENTITY = re.compile(r"&(?:quot|apos|amp|lt|gt|nbsp|#\d{1,4}|#[xX][0-9a-fA-F]{1,4});")
_TAG = re.compile(r"</?(?:br|pre|code|tt|p|div|span)(?: [^<>]{0,100})?/?>")
#: The messages that one line after another begins with; such a line continues none.
_DRIVER = "arm-smmu-v3 "
#: Between messages of that driver which a tracker has put into one line.
_BETWEEN = re.compile(
    r"\s{1,8}(?:\[[^\]]{1,30}\] "
    r"|\S{2,10} {1,2}\d{1,2} [\d:.]{7,15} \S{1,255} kernel: (?:\[[^\]]{1,30}\] )?)?"
    r"(?=arm-smmu-v3 \S{1,64}:)"
)


@dataclass(frozen=True, slots=True)
class Line:
    """A line.

    :param number: its number in the text, from 1.
    :param text: the message.
    :param writer: the program that wrote it, if it is not the kernel; empty if that is unknown.
    :param starts: it starts a message, so it does not continue the line before it.
    :param wrapped: it is long enough for a line that a mailer wrapped, or a word of an event.
    :param glued: if it does, a terminal broke the line within a word or before one.
    """

    number: int
    text: str
    writer: str = ""
    starts: bool = False
    wrapped: bool = False
    glued: bool = False


def decode(data: bytes, source: str) -> str:
    """Decode a text in UTF-8 or UTF-16; bytes that are in neither are replaced.

    :raise InputError: if it has more than :data:`MAX_BYTES`.
    """
    if len(data) > MAX_BYTES:
        raise InputError(
            f"reading {source}: more than {MAX_BYTES >> 20} MiB; use a part of it: "
            f"tail -c {MAX_BYTES >> 20}M"
        )
    return data.decode(_encoding(data[:1024]), "replace")


def _encoding(start: bytes) -> str:
    """Return the encoding of a text by its first bytes."""
    if start.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    # In UTF-16, with a byte order mark or without: most characters of a log have a zero byte.
    even, odd = start[::2], start[1::2]
    if 2 * odd.count(0) > len(odd) > even.count(0) * 8:
        return "utf-16" if start.startswith(codecs.BOM_UTF16_LE) else "utf-16-le"
    if 2 * even.count(0) > len(even) > odd.count(0) * 8:
        return "utf-16" if start.startswith(codecs.BOM_UTF16_BE) else "utf-16-be"
    return "utf-8"


def lines(text: str) -> Iterator[Line]:
    """Yield the lines that are not blank, without the prefixes of the log."""
    fields = FieldReader()
    writer = ""
    hanging = False  # a mailer wrapped the line after its prefix
    full = False  # the line before has as many characters as a terminal has columns
    for number, raw in enumerate(_physical_lines(text), 1):
        record = read_line(number, raw.strip())
        used = record is not None
        if not used:
            used, record = fields.line(number, raw[:MAX_LINE])
        if record is not None:
            yield from _of_record(record)
        if used:
            continue
        clean = _clean(raw[:MAX_LINE])
        if not clean.strip():
            writer = ""
            continue
        message = log_prefixes.parse(clean)
        if message.prefixed or not (message.indented or hanging):
            writer = message.writer
        hanging = message.prefixed and not message.text
        glued, full = full and not clean[0].isspace(), len(clean) in _COLUMNS
        if not message.text.startswith(_DRIVER):
            wrapped = len(clean) >= _LEFT or _WORD.match(message.text) is not None
            yield Line(number, message.text, writer, message.prefixed, wrapped, glued)
            continue
        for text in _BETWEEN.split(message.text):
            yield Line(number, text, writer, starts=True, wrapped=True)
    record = fields.end()
    if record is not None:
        yield from _of_record(record)


def _physical_lines(text: str) -> Iterator[str]:
    """Yield the lines of a text, with any of the common line ends, up to a length."""
    start = 0
    for end in _END.finditer(text):
        yield text[start : min(end.start(), start + MAX_RECORD)]
        start = end.end()
    yield text[start : start + MAX_RECORD]


def _of_record(record: Record) -> Iterator[Line]:
    """Yield the lines of a record's message."""
    for raw in record.message[:MAX_RECORD].split("\n"):
        clean = _clean(raw[:MAX_LINE])
        if clean.strip():
            message = log_prefixes.parse(clean)
            yield Line(record.number, message.text, record.writer or message.writer, True)


def _clean(line: str) -> str:
    """Return a line without colours, control characters, entities and tags of HTML."""
    line = line.rstrip()
    if "&" in line:
        line = _ENTITY.sub(lambda entity: html.unescape(entity[0]), line)
    if "<" in line:
        line = _TAG.sub("", line).rstrip()
    if "[" in line:
        line = _COLOUR.sub("", line)
    return line if line.isprintable() else _CONTROL.sub("?", line)


class LineReader:
    """Iterates over lines, and joins those that a mailer or a terminal has wrapped."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._ahead: deque[Line] = deque()
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[Line]:
        """Yield the lines that :meth:`skip` does not skip."""
        while True:
            line = self._ahead.popleft() if self._ahead else next(self._lines, None)
            if line is None:
                return
            yield line

    def joined(self, line: Line) -> str:
        """Return the text of the current line and of the lines that may continue it.

        A line feed is where a line ends, except where a terminal broke it.
        """
        text = line.text
        self._ends = [len(text)]
        last = line
        for number in range(_WRAPPED):
            if not last.wrapped or len(last.text) > _WRAPPED_LENGTH:
                break
            if number == len(self._ahead):
                following = next(self._lines, None)
                if following is None:
                    break
                self._ahead.append(following)
            last = self._ahead[number]
            if last.starts or len(last.text) > _WRAPPED_LENGTH:
                break
            text += last.text if last.glued else f"\n{last.text}"
            self._ends.append(len(text))
        return text

    def skip(self, used: int) -> None:
        """Skip the lines after the current one that belong to it.

        :param used: how many characters of the text that :meth:`joined` returned belong to it.
        """
        for end in self._ends[:-1]:
            if used > end:
                self._ahead.popleft()
