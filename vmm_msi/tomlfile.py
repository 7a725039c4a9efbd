"""Strict decoding of TOML files, with errors that name the line.

TOML is read by :mod:`tomllib` and converted by msgspec; what this module adds is the bound on size
and nesting and the way from msgspec's ``$.host.smmu[0]`` back to a line of the file
(TOML 1.0.0, https://toml.io/en/v1.0.0).
"""

from __future__ import annotations

import enum
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from vmm_msi.terminal import printable

if TYPE_CHECKING:
    from pathlib import Path

    from vmm_msi.errors import InputError

T = TypeVar("T")

#: Bytes that a file may have unless the caller says otherwise.
MAX_SIZE = 1 << 20
#: Parts that one dotted key may have: tomllib needs time quadratic in it.
MAX_KEY_PARTS = 32
_MAX_SHOWN = 200

_STRING = (
    r'"""(?:\\.|[^\\])*?(?:"""+|\Z)|' + r"'''.*?(?:'''+|\Z)|"
    r'"(?:\\.|[^"\\\n])*(?:"|$|\Z)|' + r"'[^'\n]*(?:'|$|\Z)"
)
_OPAQUE = re.compile(rf"(?P<string>{_STRING})|\#[^\n]*", re.DOTALL | re.MULTILINE)
_LONG_KEY = re.compile(rf'(?<![\w"+-])(?:[\w"+-]++[ \t]*+\.[ \t]*+){{{MAX_KEY_PARTS},}}', re.ASCII)
_LONG_NUMBER = re.compile(r"(?<![\w])[+-]?\d[\d_]{4299,}")
_TOKEN = re.compile(
    rf"(?P<string>{_STRING})|\#[^\n]*|(?P<punct>[\[\]{{}}=,.\n])|(?P<bare>[^\s\[\]{{}}=,.\"'#]+)",
    re.DOTALL | re.MULTILINE,
)
_POSITION = re.compile(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", re.DOTALL)
_VALIDATION = re.compile(r"(.*) - at `(?:key in )?\$(.*)`", re.DOTALL)
_PATH_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]|(\[\.\.\.\])")
_WORDS = {"object": "table", "str": "string", "bool": "boolean", "int": "integer"}

#: The way to a value: keys, and indexes of arrays and of arrays of tables.
KeyPath = tuple[str | int, ...]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the structs that TOML tables are decoded to: a key it does not name is an error."""


class Number(int):
    """An unsigned 64-bit number, written as an integer or as a string like ``"0x200000000"``."""

    __slots__ = ()

    @classmethod
    def from_toml(cls, value: object) -> Number:
        """Convert what tomllib made of it.

        :raise ValueError: when it is no such number.
        """
        if isinstance(value, str) and re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}", value):
            return cls(value, 16)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64:
            return cls(value)
        raise ValueError('expected an integer from 0 to 2^64-1 or a hex string like "0x8080000"')


def read_text(path: Path, error: type[InputError], limit: int = MAX_SIZE) -> str:
    """Return the text of ``path``, which has at most ``limit`` bytes.

    :raise InputError: of the class ``error``, when the file is missing, unreadable, larger than
        ``limit`` or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as failure:
        raise error(f"{path}: cannot be read: {failure.strerror}") from failure
    except ValueError as failure:
        raise error(f"{str(path)!r}: not a file name: {failure}") from failure
    if len(data) > limit:
        raise error(f"{path}: larger than the {limit} bytes such a file may have")
    try:
        return data.decode()
    except UnicodeDecodeError as failure:
        raise error(f"{path}: not UTF-8 at byte offset {failure.start:#x}") from failure


def read(path: Path, kind: type[T], error: type[InputError], limit: int = MAX_SIZE) -> T:
    """Read ``path`` and decode it to ``kind``.

    :param limit: bytes the file may have.
    :raise InputError: of the class ``error``, as for :func:`read_text` and :func:`decode`.
    """
    return decode(read_text(path, error, limit), kind, str(path), error, limit)


def decode(
    text: str, kind: type[T], source: str, error: type[InputError], limit: int = MAX_SIZE
) -> T:
    """Decode the TOML document ``text`` to ``kind``, a :class:`Table`.

    :param source: name of the file, for messages.
    :param error: class of the errors to raise.
    :param limit: characters the text may have.
    :raise InputError: of the class ``error``, when the text is not TOML, has a key that ``kind``
        does not have, lacks one that it needs or has a value of another type.
    """
    return convert(parse(text, source, error, limit), kind, text, source, error)


def parse(text: str, source: str, error: type[InputError], limit: int = MAX_SIZE) -> dict[str, Any]:
    """Return the TOML document ``text`` as plain dicts and lists.

    :raise InputError: of the class ``error``, when it is not TOML or not within the bounds.
    """
    if len(text) > limit:
        raise error(f"{source}: larger than the {limit} characters such a file may have")
    masked = _OPAQUE.sub('"', text)
    if _LONG_KEY.search(masked):
        masked = _OPAQUE.sub(lambda match: '"' + "\n" * match[0].count("\n"), text)
        found = _LONG_KEY.search(masked)
        line = masked.count("\n", 0, found.start()) + 1 if found else 1
        raise error(f"{source}:{line}: a key has more than {MAX_KEY_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError as failure:
        raise error(f"{source}: arrays or inline tables are nested too deeply") from failure
    except ValueError as failure:
        match = _POSITION.fullmatch(str(failure))
        if match is None:
            number = _LONG_NUMBER.search(text)
            line = text.count("\n", 0, number.start()) + 1 if number else 1
            raise error(f"{source}:{line}: a number has too many digits") from failure
        line = int(match[2]) if match[2] else text.count("\n") + 1
        raise error(f"{source}:{line}: not TOML: {one_line(match[1])}") from failure


def convert(document: object, kind: type[T], text: str, source: str, error: type[InputError]) -> T:
    """Convert the parsed ``document`` to ``kind``.

    :param text: what the document was parsed from, to find the line of an error.
    :raise InputError: of the class ``error``, as for :func:`decode`.
    """
    try:
        return msgspec.convert(document, kind, dec_hook=_hook)
    except msgspec.ValidationError as failure:
        message, path = _explain(failure, document, kind)
        raise error(f"{source}:{find_line(text, path)}: {message}") from failure
    except RecursionError as failure:
        raise error(f"{source}: tables are nested too deeply") from failure


def find_line(text: str, path: KeyPath) -> int:
    """Return the line on which ``path`` is set in ``text``, which is valid TOML.

    Where the path itself is not found, that of the innermost table that is. One pass over the
    tokens, in constant memory.
    """
    scan = _Scan(path)
    for token in _TOKEN.finditer(text):
        scan.feed(token)
    return scan.best_line


def show_path(path: KeyPath) -> str:
    """Return ``path`` as ``host.device[2].vectors``; indexes count from 0."""
    out = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return one_line(out.removeprefix("."))


class _Scan:
    """A walk over the tokens of a TOML document towards one path."""

    def __init__(self, target: KeyPath) -> None:
        self.target = target
        self.best_line = 1
        self._best = 0
        self._line = 1
        self._table: KeyPath = ()  # of the last header
        self._elements: dict[KeyPath, int] = {}  # arrays of tables and their length so far
        self._open: list[KeyPath] = []  # inline tables and arrays; an array ends in its index
        self._parts: list[str] = []
        self._header = 0
        self._in_value = False
        self._value: KeyPath = ()

    def feed(self, token: re.Match[str]) -> None:
        text = token[0]
        if text == "\n":
            self._line += 1
            if not self._open:
                self._parts, self._header, self._in_value = [], 0, False
        elif token["punct"]:
            self._punctuation(text)
        elif token["string"] or token["bare"]:
            if self._in_value:
                self._note(self._value)
            else:
                self._parts.append(_unquoted(text) if token["string"] else text)
            self._line += text.count("\n")

    def _punctuation(self, text: str) -> None:
        if self._in_value:
            self._in_a_value(text)
        elif text == "=":
            base = self._open[-1] if self._open else self._table
            self._value = self._reach(base, self._parts)
            self._in_value = True
        elif text == "[":
            self._header += 1
        elif text == "]" and self._parts:
            self._enter_header()
        elif text == "}" and self._open:
            self._open.pop()
            self._in_value = True

    def _in_a_value(self, text: str) -> None:
        if text == "{":
            self._note(self._value)
            self._open.append(self._value)
            self._parts, self._in_value = [], False
        elif text == "[":
            self._note(self._value)
            self._value = (*self._value, 0)
            self._open.append(self._value)
        elif text in "]}" and self._open:
            self._open.pop()
        elif text == "," and self._open:
            top = self._open[-1]
            if isinstance(top[-1], int) and self._is_array(top):
                self._value = self._open[-1] = (*top[:-1], top[-1] + 1)
            else:
                self._parts, self._in_value = [], False

    def _is_array(self, top: KeyPath) -> bool:
        # An inline table that is an element of an array shares its path with the array's entry,
        # which lies directly below it on the stack.
        return not (len(self._open) > 1 and self._open[-2] == top)

    def _enter_header(self) -> None:
        parts, self._parts = self._parts, []
        *outer, last = parts
        path = (*self._reach((), outer), last)
        self._note(path)
        if self._header > 1:
            count = self._elements.get(path, 0)
            if self._wanted(path):
                self._elements[path] = count + 1
            path = (*path, count)
        elif path in self._elements:
            path = (*path, self._elements[path] - 1)
        self._note(path)
        self._table = path

    def _reach(self, base: KeyPath, parts: list[str]) -> KeyPath:
        path = base
        for part in parts:
            path = (*path, part)
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
            self._note(path)
        return path

    def _wanted(self, path: KeyPath) -> bool:
        return path == self.target[: len(path)]

    def _note(self, path: KeyPath) -> None:
        if len(path) > self._best and self._wanted(path):
            self._best, self.best_line = len(path), self._line


def _unquoted(token: str) -> str:
    """Return the key that the quoted ``token`` stands for."""
    if token.startswith('"') and "\\" in token:
        return str(tomllib.loads(f"key = {token}")["key"])
    return token[1:-1]


def _hook(kind: type, value: object) -> object:
    if kind is Number:
        return Number.from_toml(value)
    raise NotImplementedError(f"TOML is not decoded to {kind}")


def _explain(
    failure: msgspec.ValidationError, document: object, kind: object
) -> tuple[str, KeyPath]:
    """Return the message and the path of a failed conversion."""
    match = _VALIDATION.fullmatch(str(failure))
    message, where = (match[1], match[2]) if match else (str(failure), "")
    path: list[str | int] = []
    for step in _PATH_STEP.finditer(where):
        if step[3]:
            found = _find_entry(document, kind)
            if found is None:
                break
            path.append(found)
        else:
            path.append(int(step[2]) if step[2] else step[1])
        kind = _type_below(kind, path[-1])
        document = _below(document, path[-1])
    return _reword(message, kind, tuple(path))


def _reword(message: str, kind: object, path: KeyPath) -> tuple[str, KeyPath]:
    table = ".".join(step for step in path if isinstance(step, str))
    place = f"in [{one_line(table)}]" if table else "at top level"
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL):
        keys = ", ".join(sorted(field.encode_name for field in _fields(kind)))
        return f"unknown key {one_line(repr(match[1]))} {place}; valid keys: {keys}", (
            *path,
            match[1],
        )
    if match := re.fullmatch(r"Object missing required field `(.*)`", message):
        return f"required key '{match[1]}' is missing {place}", path
    message = message.replace(" | null`", "`")
    words = re.sub(r"`([^`]*)`", lambda match: _WORDS.get(match[1], match[1]), message)
    plain = one_line(words[:1].lower() + words[1:])
    if valid := _values(kind):
        plain += f"; valid values: {valid}"
    return f"{show_path(path) or 'document'}: {plain}", path


def _find_entry(document: object, kind: object) -> str | None:
    """Return the key below which a dict, whose keys msgspec does not name, is wrong."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            try:
                msgspec.convert(value, _type_below(kind, key), dec_hook=_hook)
            except msgspec.ValidationError:
                return str(key)
    return None


def _options(kind: object) -> list[Any]:
    """Return ``kind`` without Annotated, or the members of the union it is."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _options(typing.get_args(kind)[0])
    if origin is typing.Union or isinstance(kind, types.UnionType):
        return [option for member in typing.get_args(kind) for option in _options(member)]
    return [kind]


def _fields(kind: object) -> tuple[msgspec.structs.FieldInfo, ...]:
    for option in _options(kind):
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return msgspec.structs.fields(option)
    return ()


def _type_below(kind: object, step: str | int) -> Any:  # noqa: ANN401 - any type form
    for field in _fields(kind):
        if field.encode_name == step:
            return field.type
    for option in _options(kind):
        arguments = typing.get_args(option)
        if isinstance(step, int) and arguments:
            return arguments[0]
        if isinstance(step, str) and len(arguments) > 1:
            return arguments[1]
    return Any


def _below(document: object, step: str | int) -> object:
    if isinstance(document, Mapping):
        return document.get(step)
    if isinstance(document, list) and isinstance(step, int) and step < len(document):
        return document[step]
    return None


def _values(kind: object) -> str:
    values: list[str] = []
    for option in _options(kind):
        if isinstance(option, type) and issubclass(option, enum.Enum):
            values += [str(member.value) for member in option]
        elif typing.get_origin(option) is typing.Literal:
            values += [str(value) for value in typing.get_args(option)]
    return ", ".join(values)


def one_line(text: object) -> str:
    """Return ``text`` on one line and not too long for a message."""
    shown = printable(str(text)[: _MAX_SHOWN + 1])
    return shown if len(str(text)) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "…"
