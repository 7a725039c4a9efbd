"""Texts that a program prints, and their meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from vmm_msi.explain import errno_words, printf
from vmm_msi.types import Iova, StreamId

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm_msi.explain.explanation import Program
    from vmm_msi.explain.log_context import LogContext
    from vmm_msi.types import Ipa


@dataclass(frozen=True)
class Case:
    """How a text comes about in one case, and what differs from the text's other cases.

    :param why: how it comes about.
    :param what: its meaning; empty for that of the text.
    :param missing: the missing mapping; None for that of the text.
    :param remedies: changes that fix it; empty for those of the text.
    :param findings: ids of the doctor's findings; None for those of the text.
    :param ipa: the address that stage 2 should map, and ``ipa_is`` its description.
    """

    why: str
    what: str = ""
    missing: str | None = None
    remedies: tuple[str, ...] = ()
    findings: tuple[str, ...] | None = None
    ipa: Ipa | None = None
    ipa_is: str = ""


@dataclass(frozen=True)
class Text:
    """One text, or several with the same meaning.

    In the sentences, ``{0}`` is the output of the first conversion; ``{device}`` and ``{guest}``
    are the device and the guest if known.

    :param id: its stable name.
    :param formats: the printf(3) formats of the program's newest release; if one starts with a
        conversion, its end is enough.
    :param what: its meaning.
    :param source: where the program prints it.
    :param why: how it comes about.
    :param cases: how it comes about if the line, from the text on, also has these words; upper
        and lower case are the same, and the number of an errno counts as its words.
    :param case_of: returns the case of a line, instead of ``cases``.
    :param in_guest: the cases in the guest's own log, where they differ; the words may be empty.
    :param missing: the missing mapping.
    :param remedies: changes that fix it.
    :param strategies: whether to name the strategies that deliver in the simulator, too.
    :param iova: what stands in front of an IOVA, in hexadecimal.
    :param stream: what stands in front of a StreamID, in the bits of ``stream_mask``.
    :param older: the formats of earlier releases.
    """

    id: str
    program: Program
    formats: tuple[str, ...]
    what: str
    source: str
    why: str = ""
    cases: Mapping[str, Case] = field(default_factory=dict)
    case_of: Callable[[str, LogContext], Case] | None = None
    in_guest: Mapping[str, Case] = field(default_factory=dict)
    missing: str = ""
    stage: int | None = None
    remedies: tuple[str, ...] = ()
    strategies: bool = False
    iova: str = ""
    stream: str = ""
    stream_mask: int = 0xFFFF_FFFF
    older: tuple[str, ...] = ()

    def case(self, line: str, rest: str, context: LogContext) -> Case:
        """Return the case of a line.

        :param rest: the line from the text on.
        """
        if self.case_of is not None:
            return self.case_of(line, context)
        words = errno_words.added(rest).lower()
        case = _first(self.in_guest, words) if context.in_guest else None
        return case or _first(self.cases, words) or Case(self.why)

    def case_in_guest(self, rest: str) -> Case | None:
        """Return the case of a line if it is one of a guest's log; None if that is the same."""
        return _first(self.in_guest, errno_words.added(rest).lower())

    def iova_in(self, rest: str) -> Iova | None:
        """Return the IOVA of a line, if it has one.

        :param rest: the line from the text on.
        """
        value = _hex_after(self.iova, rest)
        return None if value is None else Iova(value)

    def stream_in(self, rest: str) -> StreamId | None:
        """Return the StreamID of a line, if it has one.

        :param rest: the line from the text on.
        """
        value = _hex_after(self.stream, rest)
        return None if value is None else StreamId(value & self.stream_mask)

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """One form for each format."""
        return tuple(
            Form(self, format_, printf.key(format_)) for format_ in (*self.formats, *self.older)
        )


def _hex_after(words: str, text: str) -> int | None:
    match = re.search(re.escape(words) + r"([0-9a-fA-F]{1,16})", text) if words else None
    return None if match is None else int(match[1], 16)


def _first(cases: Mapping[str, Case], words: str) -> Case | None:
    """Return the first case whose phrase is in a text."""
    return next((case for phrase, case in cases.items() if phrase.lower() in words), None)


@dataclass(frozen=True)
class Form:
    """One of the forms of a text.

    :param key: words that every line of this form has.
    """

    text: Text
    format: str
    key: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches a line of this form."""
        return printf.pattern(self.format)
