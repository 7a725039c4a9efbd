"""Put elements into a document and take them out again, so that a diff shows nothing else.

A new element gets the indentation of its siblings. Taking it out gives its white space back to
what stood around it: :func:`take_out` after :func:`put_after` restores the text exactly, also when
several elements were put in and are taken out in another order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lxml import etree

from vmm_msi.errors import DomainXmlError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lxml.etree import _Element as Element

# White space of XML (1.0, production 3); Python's own is more.
_WHITE = " \t\r\n"


def build(tag: str, attributes: Mapping[str, str], *children: Element) -> Element:
    """Return a new element.

    :raise DomainXmlError: when a value has characters that XML cannot hold.
    """
    try:
        element = etree.Element(tag, dict(attributes))
    except ValueError:
        words = ", ".join(f"{name}={value!r}" for name, value in attributes.items())
        raise DomainXmlError(
            f"writing <{tag}> with {words}: a value has characters that XML cannot hold; "
            "valid is printable text"
        ) from None
    element.extend(children)
    return element


def put_after(parent: Element, previous: Element | None, new: Element) -> None:
    """Insert ``new`` into ``parent``, behind ``previous`` or first where that is None."""
    line = _line_of_children(parent)
    if line is not None:
        _indent(new, line, _unit(parent, line))
    if previous is None:
        new.tail = parent.text
        parent.text = line
        parent.insert(0, new)
    else:
        tail = previous.tail
        parent.insert(parent.index(previous) + 1, new)
        new.tail = tail
        previous.tail = line


def take_out(element: Element) -> None:
    """Remove ``element`` from its parent, and the white space that it brought."""
    parent = element.getparent()
    if parent is None:
        return
    tail = element.tail
    previous = element.getprevious()
    before = parent.text if previous is None else previous.tail
    if before is not None and before.strip(_WHITE):
        tail = before + (tail or "")
    element.tail = None
    parent.remove(element)
    if previous is None:
        parent.text = tail
    else:
        previous.tail = tail


def _line_of_children(parent: Element) -> str | None:
    """Return the line break and indentation in front of a child of ``parent``."""
    if len(parent) == 0:
        own = line_of(parent)
        outer = parent.getparent()
        if own is None or outer is None:
            return None
        return own + _unit(outer, own)
    return _last_line(parent.text)


def line_of(element: Element) -> str | None:
    """Return the line break and indentation in front of an element, None where there are none."""
    outer = element.getparent()
    if outer is None:
        return "\n"
    previous = element.getprevious()
    return _last_line(outer.text if previous is None else previous.tail)


def _unit(parent: Element, line: str) -> str:
    """Return by how much ``parent``'s children are indented further than ``parent``."""
    own = line_of(parent)
    return line[len(own) :] if own is not None and line.startswith(own) else ""


def _last_line(text: str | None) -> str | None:
    """Return the last line break of ``text`` and what follows, where that is white space."""
    if text is None or text.strip(_WHITE) or "\n" not in text:
        return None
    return text[text.rindex("\n") :]


def _indent(element: Element, line: str, unit: str) -> None:
    """Lay out what is below ``element``, which stands behind ``line``."""
    if len(element) == 0:
        return
    element.text = line + unit
    for child in element:
        _indent(child, line + unit, unit)
        child.tail = line + unit
    element[-1].tail = line
