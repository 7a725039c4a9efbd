"""Check the attributes of a definition against the values that libvirt accepts.

The facts are those of :mod:`vmm_msi.domxml.libvirt_values`, which is generated: a real libvirt was
given each value in a definition without validation.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lxml.etree import _Element as Element

    from vmm_msi.domxml.libvirt_domain import DomainXml

# Digits of a number that is worth converting.
_DIGITS = 20
# Words of this length or less may be part of any other word.
_SHORT = 3
# Words that people write for a switch.
_ON = {"on", "yes", "true", "1", "y", "enable", "enabled"}
_OFF = {"off", "no", "false", "0", "n", "disable", "disabled"}


class Kind(StrEnum):
    """The values of an attribute."""

    #: Any text.
    TEXT = "text"
    #: One of some words.
    WORD = "word"
    #: A number, as strtoul(3) reads it.
    NUMBER = "number"
    #: No value: the attribute belongs to another kind of element.
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Attribute:
    """What libvirt does with the values of an attribute.

    :param words: the accepted words.
    :param base: the base of a number; 0 for decimal, octal after 0 and hexadecimal after 0x.
    :param low: the smallest accepted number.
    :param high: the largest accepted number.
    :param refusal: libvirt's message about another value, with ``{value}`` in its place; None if
        libvirt accepts such a value and keeps another one.
    :param below: libvirt's message about a number below the range, with ``{number}`` or ``{hex}``
        in its place; None as above.
    :param above: its message about a number above the range.
    :param missing: libvirt's message if the attribute is missing; None if it may be.
    :param needs: another attribute without which libvirt refuses this one, with its message.
    """

    kind: Kind = Kind.TEXT
    words: tuple[str, ...] = ()
    base: int = 10
    low: int = 0
    high: int = 0
    refusal: str | None = None
    below: str | None = None
    above: str | None = None
    missing: str | None = None
    needs: tuple[str, str] | None = None

    def problem(self, value: str) -> Problem | None:
        """Return why libvirt does not keep ``value``; None if it does."""
        if self.kind is Kind.NEVER:
            return Problem(_filled(self.refusal, value), None)
        if self.kind is Kind.WORD:
            return None if value in self.words else self._unknown(value)
        if self.kind is Kind.TEXT:
            return None
        number = _number(value, self.base)
        if number is None:
            return self._unknown(value)
        if self.low <= number <= self.high:
            return None
        message = self.below if number < self.low else self.above
        if message is not None:
            message = message.replace("{number}", str(number)).replace("{hex}", f"{number:#x}")
        return Problem(message, None)

    def valid(self) -> str:
        """Return the accepted values as text."""
        if self.kind is Kind.WORD:
            return ", ".join(self.words)
        digits = "decimal digits" if self.base else "decimal, or hexadecimal after 0x"
        return f"{self.low} to {self.high}, {digits}"

    def _unknown(self, value: str) -> Problem:
        return Problem(_filled(self.refusal, value), self._intended(value))

    def _intended(self, value: str) -> str | None:
        """Return the accepted value that the author probably intended."""
        plain = value.strip().lower()
        if self.kind is Kind.NUMBER:
            number = _number(plain, 0)
            fits = number is not None and self.low <= number <= self.high
            return str(number) if fits else None
        for switch in (_ON, _OFF):
            if plain in switch and (word := next(filter(switch.__contains__, self.words), None)):
                return word
        lowered = {word.lower(): word for word in self.words}
        if similar := difflib.get_close_matches(plain, lowered, 1, cutoff=0.8):
            return lowered[similar[0]]
        inside = [word for word in lowered if len(word) > _SHORT and word in plain]
        return lowered[max(inside, key=len)] if inside else None


class Problem(NamedTuple):
    """Why libvirt does not keep a value.

    :param message: libvirt's message; None if it accepts the value and keeps another one.
    :param intended: the accepted value that was probably intended; None if no value is similar.
    """

    message: str | None
    intended: str | None


class BadValue(NamedTuple):
    """An attribute of a definition that libvirt does not keep as it is.

    :param attribute: its name.
    :param value: its value; None if it is missing.
    """

    element: Element
    attribute: str
    value: str | None
    problem: Problem
    known: Attribute

    @property
    def is_clear(self) -> bool:
        """Whether libvirt accepts the definition, and it is clear which value was intended."""
        return self.problem.message is None and self.problem.intended is not None

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.attribute} is missing"
        return f"{self.attribute}='{self.value}'"


def bad_values(domain: DomainXml) -> Iterator[BadValue]:
    """Yield the attributes of assignment behind vSMMUs that libvirt refuses or changes."""
    from vmm_msi.domxml.libvirt_values import ATTRIBUTES

    for path, attributes in ATTRIBUTES.items():
        for element in _elements(domain.root, path):
            yield from _of_element(element, attributes)


def readable(domain: DomainXml) -> DomainXml:
    """Return a copy without the values that libvirt refuses or changes."""
    copied = domain.copy()
    for bad in [*bad_values(copied)]:
        bad.element.attrib.pop(bad.attribute, None)
        if bad.problem.intended is not None:
            bad.element.set(bad.attribute, bad.problem.intended)
    return copied


def _of_element(element: Element, attributes: Mapping[str, Attribute]) -> Iterator[BadValue]:
    for name, known in attributes.items():
        value = element.get(name)
        if value is None:
            if known.missing is not None:
                yield BadValue(element, name, None, Problem(known.missing, None), known)
            continue
        problem = known.problem(value)
        if problem is None and known.needs is not None and element.get(known.needs[0]) is None:
            problem = Problem(known.needs[1], None)
        if problem is not None:
            yield BadValue(element, name, value, problem, known)


def _elements(root: Element, path: str) -> Iterator[Element]:
    """Yield the elements of a path in the table; of devices, only those that it is about."""
    if not path.startswith("devices/"):
        yield from root.iterfind(path)
        return
    from vmm_msi.domxml.libvirt_values import ATTRIBUTES

    tag, _, below = path.removeprefix("devices/").partition("/")
    name, intended = ("model", "smmuv3") if tag == "iommu" else ("type", "pci")
    others = {*ATTRIBUTES[f"devices/{tag}"][name].words} - {intended}
    if tag == "controller":
        others.add("")
    # The attributes of other kinds of addresses are not in the table.
    kinds = ATTRIBUTES[path].get("type") if below.endswith("address") else None
    elsewhere = {*kinds.words} - {intended} if kinds is not None else set()
    devices = root.iterfind(f"devices/{tag}")
    if below.endswith("address") and tag == "hostdev":
        # libvirt reads the addresses of an assigned network device in the same function.
        devices = chain(devices, root.iterfind("devices/interface[@type='hostdev']"))
    for device in devices:
        if device.get(name, "") in others or device.get("mode") == "capabilities":
            continue
        for element in device.iterfind(below) if below else (device,):
            if element.get("type") not in elsewhere:
                yield element


def _filled(message: str | None, value: str) -> str | None:
    return None if message is None else message.replace("{value}", value)


def _number(text: str, base: int) -> int | None:
    """Return a number as strtoul(3) reads it, with nothing after it."""
    match = re.fullmatch(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)", text)
    if match is None or len(match[2]) > _DIGITS:
        return None
    digits = match[2].lower()
    if base == 0:
        base = 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10
    try:
        number = int(digits, base)
    except ValueError:
        return None
    return -number if match[1] == "-" else number
