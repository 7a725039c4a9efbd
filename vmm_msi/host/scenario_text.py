"""Write the document of a scenario as TOML, with comments.

Addresses and IDs are written in hexadecimal, other numbers in decimal (TOML 1.0.0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.terminal import printable
from vmm_msi.types import Address, DeviceId, StreamId

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_WIDTH = 79
_HEX = (Address, StreamId, DeviceId)
#: First integer that readers of TOML need not take.
_INTEGER_END = 1 << 63
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def toml_lines(
    document: Mapping[str, object],
    heading: Sequence[str] = (),
    comments: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Yield the lines of a document of tables, such as ``{"host": {…}}``.

    :param heading: lines of the comment at its start.
    :param comments: a comment for a table or a key, by its name without indexes such as
        ``host.device.vectors``; it is written where the name appears first.
    """
    left = dict(comments or {})
    yield from (f"# {printable(line)}".rstrip() for line in heading)
    for name, table in document.items():
        if isinstance(table, dict):
            yield from _table(name, table, left)


def _table(name: str, table: Mapping[str, object], comments: dict[str, str]) -> Iterator[str]:
    """Yield a table and the arrays of tables in it."""
    arrays = {key: value for key, value in table.items() if _is_array_of_tables(value)}
    entries = {key: value for key, value in table.items() if key not in arrays}
    if entries or not arrays:
        yield ""
        yield from _with_comment(f"[{name}]", name, comments)
        yield from _entries(name, entries, comments)
    for key, elements in arrays.items():
        for element in elements:  # type: ignore[attr-defined]
            yield ""
            yield from _with_comment(f"[[{name}.{key}]]", f"{name}.{key}", comments)
            yield from _entries(f"{name}.{key}", element, comments)


def _entries(name: str, entries: Mapping[str, object], comments: dict[str, str]) -> Iterator[str]:
    for key, value in entries.items():
        first, *more = _value_lines(value, len(key) + 3)
        yield from _with_comment(f"{key} = {first}", f"{name}.{key}", comments)
        yield from more


def _with_comment(text: str, name: str, comments: dict[str, str]) -> Iterator[str]:
    """Yield a line with its comment, which goes before a line that is too long for it."""
    comment = comments.pop(name, "")
    line = f"{text:31} # {comment}" if comment else text
    if comment and len(line) > _WIDTH:
        yield f"# {comment}"
        line = text
    yield line


def _is_array_of_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _value_lines(value: object, indent: int) -> list[str]:
    """Return a value as one line, or an array as a line for each element if that is too long."""
    text = toml_value(value)
    if not isinstance(value, list) or indent + len(text) <= _WIDTH or not value:
        return [text]
    return ["[", *(f"    {toml_value(element)}," for element in value), "]"]


def toml_value(value: object) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        text = f"{int(value):#x}" if isinstance(value, _HEX) else str(int(value))
        return text if value < _INTEGER_END else f'"{int(value):#x}"'
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {toml_value(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    return f'"{"".join(map(_character, str(value)))}"'


def _character(character: str) -> str:
    """Return a character of a string of TOML; what a terminal would obey is escaped.

    A lone surrogate, by which Python keeps a byte that is not UTF-8, becomes U+FFFD: TOML has none.
    """
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    if 0xD800 <= code < 0xE000:
        return "\\uFFFD"
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
