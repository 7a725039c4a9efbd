"""A text that a program prints, and what it means."""

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
    """One text, or several that mean the same.

    In the sentences, ``{0}`` is what the first conversion printed, ``{device}`` and ``{guest}`` are
    the device and the guest where they are known.

    :param id: its stable name.
    :param formats: as the program prints it, by printf(3); the end of one is enough where it starts
        with a conversion.
    :param what: what it says.
    :param source: where the program prints it.
    :param why: how it comes about.
    :param cases: how it comes about where the line also has one of these words.
    :param missing: the mapping that is not there.
    :param remedies: what would mend it.
    :param strategies: strategies that deliver on the model are named, too.
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
        """Its forms."""
        return tuple(Form(self, each, printf.key(each)) for each in self.formats)


@dataclass(frozen=True)
class Form:
    """One of the forms of a text.

    :param key: words that each line of that form has.
    """

    text: Text
    format: str
    key: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What matches a line of this form."""
        return printf.pattern(self.format)
