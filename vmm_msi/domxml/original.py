"""Print an edited document so that its unedited parts are identical to the text that was read.

A parser loses how a document was written: quotes, ``&apos;`` or ``'``, CDATA, line ends, white
space in tags. Unedited parts are therefore copied from the original text. The pieces are the tags
of the root element and of its children, whole elements two levels below the root (a device, the
metadata of an application), and the text between these. Edited and new pieces are serialised.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lxml import etree

from vmm_msi.domxml import parse as _parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lxml.etree import _Element as Element

# A document that was parsed is well formed: no < in a tag, and > only in its quotes.
_TOKEN = re.compile(
    r"""<(?:!--.*?--|!\[CDATA\[.*?\]\]|\?.*?\?|/[^>]*"""
    r"""|[^>"']*(?:"[^"]*"[^>"']*|'[^']*'[^>"']*)*)>""",
    re.DOTALL,
)
_ATTRIBUTE = re.compile(r"""(\s+)([^\s=]+)(\s*=\s*)("[^"]*"|'[^']*')""")
# The printed text is UTF-8, so a declaration of another encoding would be wrong.
_OTHER_ENCODING = re.compile(
    r"""(\ufeff?)<\?xml\s[^>]*?\sencoding\s*=\s*(["'])(?!utf-8\2)[^>]*\?>\s*""", re.IGNORECASE
)
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"}
# In an attribute a parser normalises these to spaces (XML 1.0, 3.3.3).
_IN_ATTRIBUTES = {**_ESCAPES, "\n": "&#10;", "\t": "&#9;"}
_QUOTES = {'"': "&quot;", "'": "&apos;"}


# Levels of nodes that are pieces of their own.
_LEVELS = 3

# Offsets of a node in the text: start of its start tag, of its content and of its end tag, and its
# end. A node without an end tag, such as a comment, has no content.
_Span = tuple[int, int, int, int]


class Original:
    """The text that a tree was parsed from, and the tree's nodes that come from the text.

    :param text: the text; it must have been parsed.
    :param nodes: the pieces of the tree in the order of the text, None for a removed one.
    """

    def __init__(self, text: str, nodes: Sequence[Element | None]) -> None:
        self._text = text
        self._nodes = nodes

    @classmethod
    def of(cls, text: str, root: Element) -> Original:
        """Return the original of a tree that was parsed from ``text`` and not edited yet."""
        return cls(text, _pieces(root))

    def is_canonical(self, root: Element) -> bool:
        """Return whether serialising the unedited tree at ``root`` gives the text.

        This is so if libvirt wrote the text; then no original is needed.
        """
        return _parse.serialise(root) == self._text

    def for_copy(self, old: Element, new: Element) -> Original:
        """Return the original for the tree at ``new``, a copy of the one at ``old``."""
        copies = dict(zip(_pieces(old), _pieces(new), strict=True))
        nodes = [None if node is None else copies.get(node) for node in self._nodes]
        return Original(self._text, nodes)

    def print(self, root: Element) -> str:
        """Return the tree at ``root`` as text; its unedited parts are those of the original."""
        return _Printer(self._text, self._nodes).document(root)


class _Printer:
    """Printer of an edited tree; it compares each node with its twin in the unedited tree."""

    def __init__(self, text: str, nodes: Sequence[Element | None]) -> None:
        self._text = text
        self._out: list[str] = []
        read = _pieces(_parse.parse(text, "the original text"))
        self._read = {
            node: twin for node, twin in zip(nodes, read, strict=True) if node is not None
        }
        self._spans = dict(zip(read, _spans(text), strict=True))

    def document(self, root: Element) -> str:
        twin = self._read.get(root)
        if twin is None:
            return _parse.serialise(root)
        start, _inside, _close, end = self._spans[twin]
        head = self._text[:start]
        if (other := _OTHER_ENCODING.match(head)) is not None:
            head = other[1] + head[other.end() :]
        self._out.append(head)
        self._section(root, twin, "'")
        self._out.append(self._text[end:])
        return "".join(self._out)

    def _section(self, node: Element, twin: Element, quote: str) -> None:
        """Print the tags of a node and what is between them.

        :param quote: for new attributes; libvirt uses single quotes, libxml2 double in <metadata>.
        """
        start, inside, close, end = self._spans[twin]
        tag = self._text[start:inside]
        if node.items() != twin.items():
            tag = _with_attributes(tag, node, quote)
        if len(node) == 0 and not node.text:
            empty = tag.endswith("/>") or (len(twin) == 0 and not twin.text)
            self._out.append(tag + self._text[close:end] if empty else f"{tag[:-1]}/>")
            return
        if tag.endswith("/>"):
            self._out.append(f"{tag[:-2]}>")
            end_tag = f"</{tag[1:-2].split(maxsplit=1)[0]}>"
        else:
            self._out.append(tag)
            end_tag = self._text[close:end]
        inner = '"' if node.tag == "metadata" else quote
        left = None
        for child in node:
            self._gap(twin, node.text if left is None else left.tail, left, child)
            self._piece(child, section=twin.getparent() is None, quote=inner)
            left = child
        self._gap(twin, node.text if left is None else left.tail, left, None)
        self._out.append(end_tag)

    def _piece(self, node: Element, *, section: bool, quote: str) -> None:
        twin = self._read.get(node)
        if twin is None:
            self._out.append(_new(node, quote))
        elif section and isinstance(node.tag, str):
            self._section(node, twin, quote)
        elif etree.tostring(node, with_tail=False) == etree.tostring(twin, with_tail=False):
            start, _inside, _close, end = self._spans[twin]
            self._out.append(self._text[start:end])
        else:
            self._out.append(_new(node, quote))

    def _gap(
        self, parent: Element, value: str | None, left: Element | None, right: Element | None
    ) -> None:
        """Print the text between two children, as the text before or after them in the original.

        None stands for the start and the end of ``parent``.
        """
        if not value:
            return
        after = None if right is None else self._read.get(right)
        if right is None or after is not None:
            before = after.getprevious() if after is not None else _child(parent, -1)
            if self._between(parent, before, after, value):
                return
        before = None if left is None else self._read.get(left)
        if left is None or before is not None:
            after = before.getnext() if before is not None else _child(parent, 0)
            if self._between(parent, before, after, value):
                return
        self._out.append(_escaped(value, _ESCAPES))

    def _between(
        self, parent: Element, before: Element | None, after: Element | None, value: str
    ) -> bool:
        """Print the original text between two nodes if it stands for ``value``."""
        if (parent.text if before is None else before.tail) != value:
            return False
        _start, inside, close, _end = self._spans[parent]
        start = inside if before is None else self._spans[before][3]
        end = close if after is None else self._spans[after][0]
        self._out.append(self._text[start:end])
        return True


def _pieces(root: Element) -> list[Element]:
    """Return the nodes of the first levels in document order."""
    return [root, *(node for child in root for node in (child, *child))]


def _spans(text: str) -> list[_Span]:
    """Return the offsets of every node of the first levels, from the root element on."""
    spans: list[_Span] = []
    open_: list[int] = []
    depth = 0
    for token in _TOKEN.finditer(text):
        start, end = token.span()
        kind = text[start + 1]
        if kind == "/":
            depth -= 1
            if depth < _LEVELS:
                number = open_.pop()
                spans[number] = (*spans[number][:2], start, end)
        elif kind in "!?":
            if 0 < depth < _LEVELS and not text.startswith("<![", start):
                spans.append((start, end, end, end))
            continue
        else:
            if depth < _LEVELS:
                spans.append((start, end, end, end))
            if text[end - 2] != "/":
                if depth < _LEVELS:
                    open_.append(len(spans) - 1)
                depth += 1
        if not depth:
            break
    return spans


def _child(parent: Element, index: int) -> Element | None:
    return parent[index] if len(parent) else None


def _with_attributes(tag: str, node: Element, quote: str) -> str:
    """Return a start tag with the attributes of ``node``; existing ones keep their position."""
    left = {_name(node, name): value for name, value in node.items()}

    def replaced(match: re.Match[str]) -> str:
        space, name, equals, quoted = match.groups()
        if name == "xmlns" or name.startswith("xmlns:"):
            return match[0]
        if name not in left:
            return ""
        value = left.pop(name)
        return f"{space}{name}{equals}{_quoted(value, quoted[0])}"

    tag = _ATTRIBUTE.sub(replaced, tag)
    end = "/>" if tag.endswith("/>") else ">"
    new = "".join(f" {name}={_quoted(value, quote)}" for name, value in left.items())
    return f"{tag.removesuffix(end)}{new}{end}"


def _new(node: Element, quote: str) -> str:
    """Return a new node as text, without its tail."""
    if not isinstance(node.tag, str):
        return etree.tostring(node, encoding="unicode", with_tail=False)
    name = _name(node, node.tag)
    quote = '"' if name == "metadata" else quote
    outer = node.getparent()
    known = {} if outer is None else outer.nsmap
    words = [name]
    for prefix, uri in node.nsmap.items():
        if known.get(prefix) != uri:
            words.append(f"xmlns{f':{prefix}' if prefix else ''}={_quoted(uri, quote)}")
    words += [f"{_name(node, key)}={_quoted(value, quote)}" for key, value in node.items()]
    head = " ".join(words)
    if len(node) == 0 and not node.text:
        return f"<{head}/>"
    inside = [_escaped(node.text or "", _ESCAPES)]
    for child in node:
        inside += [_new(child, quote), _escaped(child.tail or "", _ESCAPES)]
    return f"<{head}>{''.join(inside)}</{name}>"


def _name(node: Element, name: str) -> str:
    """Return the name of a tag or an attribute with the prefix of its namespace."""
    qualified = etree.QName(name)
    if qualified.namespace is None:
        return qualified.localname
    if qualified.namespace == "http://www.w3.org/XML/1998/namespace":
        return f"xml:{qualified.localname}"
    prefixes = [prefix for prefix, uri in node.nsmap.items() if uri == qualified.namespace]
    prefix = node.prefix if name == node.tag else next(filter(None, prefixes), None)
    return f"{prefix}:{qualified.localname}" if prefix else qualified.localname


def _quoted(value: str, quote: str) -> str:
    return f"{quote}{_escaped(value, {**_IN_ATTRIBUTES, quote: _QUOTES[quote]})}{quote}"


def _escaped(text: str, escapes: dict[str, str]) -> str:
    for character, reference in escapes.items():
        if character in text:
            text = text.replace(character, reference)
    return text
