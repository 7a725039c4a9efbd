"""Texts that a program prints, and their meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from vmm_msi.explain import printf

if TYPE_CHECKING:
    import re
    from collections.abc import Mapping

    from vmm_msi.explain.explanation import Program


@dataclass(frozen=True)
class Text:
    """One text, or several with the same meaning.

    In the sentences, ``{0}`` is the output of the first conversion; ``{device}`` and ``{guest}``
    are the device and the guest if known.

    :param id: its stable name.
    :param formats: the printf(3) formats of the program; if one starts with a conversion, its end
        is enough.
    :param what: its meaning.
    :param source: where the program prints it.
    :param why: how it comes about.
    :param cases: how it comes about if the line also has one of these words.
    :param missing: the missing mapping.
    :param remedies: changes that fix it.
    :param strategies: whether to name the strategies that deliver in the simulator, too.
    :param iova: which conversion is an IOVA.
    :param stream: which conversion is a StreamID, in the bits of ``stream_mask``.
    """

    id: str
    program: Program
    formats: tuple[str, ...]
    what: str
    source: str
    why: str = ""
    cases: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""
    stage: int | None = None
    remedies: tuple[str, ...] = ()
    strategies: bool = False
    iova: int | None = None
    stream: int | None = None
    stream_mask: int = 0xFFFF_FFFF

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """One form for each format."""
        return tuple(Form(self, format_, printf.key(format_)) for format_ in self.formats)


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
