"""Insert and remove elements so that a diff shows nothing else.

A new element gets the indentation of its siblings. Removing it restores the white space around it:
:func:`remove` after :func:`insert_after` restores the text exactly, also when several elements are
removed in another order than they were inserted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lxml import etree

from vmm_msi.errors import DomainXmlError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lxml.etree import _Element as Element

# White space of XML (1.0, production 3); str.strip() removes more.
_WHITE = " \t\r\n"


def build(tag: str, attributes: Mapping[str, str], *children: Element) -> Element:
    """Return a new element.

    :raise DomainXmlError: when a value contains characters that XML does not allow.
    """
    try:
        element = etree.Element(tag, dict(attributes))
    except ValueError:
        words = ", ".join(f"{name}={value!r}" for name, value in attributes.items())
        raise DomainXmlError(
            f"writing <{tag}> with {words}: a value contains characters that XML does not allow; "
            "use printable text"
        ) from None
    element.extend(children)
    return element


def insert_after(parent: Element, previous: Element | None, new: Element) -> None:
    """Insert ``new`` into ``parent`` after ``previous``; as the first child if that is None."""
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


def remove(element: Element) -> None:
    """Remove ``element`` from its parent with the white space that came with it."""
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


def remove_with_parent(element: Element) -> None:
    """Remove ``element``, and its parent if that has no other child."""
    parent = element.getparent()
    remove(element)
    if parent is not None and len(parent) == 0:
        remove(parent)


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
    """Return the line break and indentation in front of an element; None if it has none."""
    outer = element.getparent()
    if outer is None:
        return "\n"
    previous = element.getprevious()
    return _last_line(outer.text if previous is None else previous.tail)


def _unit(parent: Element, line: str) -> str:
    """Return the indentation of ``parent``'s children relative to ``parent``."""
    own = line_of(parent)
    return line[len(own) :] if own is not None and line.startswith(own) else ""


def _last_line(text: str | None) -> str | None:
    """Return ``text`` from its last line break on, if ``text`` is white space."""
    if text is None or text.strip(_WHITE) or "\n" not in text:
        return None
    return text[text.rindex("\n") :]


def _indent(element: Element, line: str, unit: str) -> None:
    """Indent the descendants of ``element``, which follows ``line``."""
    if len(element) == 0:
        return
    element.text = line + unit
    for child in element:
        _indent(child, line + unit, unit)
        child.tail = line + unit
    element[-1].tail = line
