"""Strict decoding of TOML files, with errors that name the line.

TOML is parsed by :mod:`tomllib` and converted by msgspec. This module adds bounds on size and
nesting, and finds the line of a path such as ``$.host.smmu[0]``, which msgspec reports: no
maintained TOML library for Python keeps positions (TOML 1.0.0, https://toml.io/en/v1.0.0).
"""

from __future__ import annotations

import enum
import re
import tomllib
import types
import typing
from collections.abc import Generator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from vmm_msi.errors import did_you_mean
from vmm_msi.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from vmm_msi.errors import InputError

T = TypeVar("T")

#: Default limit of a file in bytes.
MAX_SIZE = 1 << 20
#: Limit of the parts of one dotted key: tomllib's time is quadratic in it.
MAX_KEY_PARTS = 32
_MAX_SHOWN = 200

_STRING = (
    r'"""(?:\\.|[^\\])*?(?:"""+|\Z)|' + r"'''.*?(?:'''+|\Z)|"
    r'"(?:\\.|[^"\\\n])*(?:"|$|\Z)|' + r"'[^'\n]*(?:'|$|\Z)"
)
# Compiled by their first use: most commands import this module and read no TOML.
_OPAQUE = rf"(?s)(?m:(?P<string>{_STRING})|\#[^\n]*)"
_LONG_KEY = rf'(?a)(?<![\w"+-])(?:[\w"+-]++[ \t]*+\.[ \t]*+){{{MAX_KEY_PARTS},}}'
_LONG_NUMBER = r"(?<![\w])[+-]?\d[\d_]{4299,}"
_TOKEN = (
    rf"(?s)(?m:(?P<string>{_STRING})|\#[^\n]*|(?P<punct>[\[\]{{}}=,.\n])"
    rf"|(?P<bare>[^\s\[\]{{}}=,.\"'#]+))"
)
_POSITION = re.compile(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", re.DOTALL)
_VALIDATION = re.compile(r"(.*) - at `(?:key in )?\$(.*)`", re.DOTALL)
_PATH_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]|(\[\.\.\.\])")
_CLOSING = {"[": "]", "{": "}"}
_OPENING = {"]": "[", "}": "{"}
_ENDS = {",", "]", "}", "\n"}
_WORDS = {"object": "table", "str": "string", "bool": "boolean", "int": "integer"}

#: The path to a value: keys, and indexes of arrays and of arrays of tables.
KeyPath = tuple[str | int, ...]
#: Takes the place of a value of a document that was removed because of a problem.
REMOVED: Final = object()
#: A symbol of TOML, such as a bracket, a key or a string, and its line.
_Token = tuple[str, int]
_Places = Generator[tuple[KeyPath, int], None, str]


class TomlTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the structs that TOML tables are decoded to; unknown keys are errors."""


class Problem(NamedTuple):
    """What is wrong at one place of a document.

    :param is_missing: the table at ``path`` lacks a key.
    """

    message: str
    path: KeyPath
    is_missing: bool = False


class Number(int):
    """An unsigned 64-bit number, written as an integer or as a string like ``"0x200000000"``."""

    __slots__ = ()

    @classmethod
    def from_toml(cls, value: object) -> Number:
        """Convert a value that tomllib parsed.

        :raise ValueError: when it is not such a number.
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
        raise error(f"{path}: larger than {limit} bytes, the limit for such a file")
    try:
        return data.decode()
    except UnicodeDecodeError as failure:
        raise error(f"{path}: not UTF-8 at byte offset {failure.start:#x}") from failure


def read(path: Path, kind: type[T], error: type[InputError], limit: int = MAX_SIZE) -> T:
    """Read ``path`` and decode it to ``kind``.

    :param limit: limit of the file in bytes.
    :raise InputError: of the class ``error``, as for :func:`read_text` and :func:`decode`.
    """
    return decode(read_text(path, error, limit), kind, str(path), error, limit)


def decode(
    text: str, kind: type[T], source: str, error: type[InputError], limit: int = MAX_SIZE
) -> T:
    """Decode the TOML document ``text`` to ``kind``, a :class:`TomlTable`.

    :param source: name of the file, for messages.
    :param error: class of the errors to raise.
    :param limit: limit of the text in characters.
    :raise InputError: of the class ``error``, when the text is not TOML, has a key that is not in
        ``kind``, lacks a required key or has a value of another type.
    """
    return convert(parse(text, source, error, limit), kind, text, source, error)


def parse(text: str, source: str, error: type[InputError], limit: int = MAX_SIZE) -> dict[str, Any]:
    """Return the TOML document ``text`` as dicts and lists.

    :raise InputError: of the class ``error``, when it is not TOML or exceeds a limit.
    """
    if len(text) > limit:
        raise error(f"{source}: larger than {limit} characters, the limit for such a file")
    masked = re.sub(_OPAQUE, '"', text)
    if re.search(_LONG_KEY, masked):
        masked = re.sub(_OPAQUE, lambda match: '"' + "\n" * match[0].count("\n"), text)
        key = re.search(_LONG_KEY, masked)
        line = masked.count("\n", 0, key.start()) + 1 if key else 1
        raise error(f"{source}:{line}: a key has more than {MAX_KEY_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError as failure:
        raise error(f"{source}: arrays or inline tables are nested too deeply") from failure
    except ValueError as failure:
        match = _POSITION.fullmatch(str(failure))
        if match is None:
            number = re.search(_LONG_NUMBER, text)
            line = text.count("\n", 0, number.start()) + 1 if number else 1
            raise error(f"{source}:{line}: a number has too many digits") from failure
        line = int(match[2]) if match[2] else text.count("\n") + 1
        raise error(f"{source}:{line}: not TOML: {one_line(match[1])}") from failure


def convert(document: object, kind: type[T], text: str, source: str, error: type[InputError]) -> T:
    """Convert the parsed ``document`` to ``kind``.

    :param text: the text of the document, to find the line of an error.
    :raise InputError: of the class ``error``, as for :func:`decode`.
    """
    try:
        return msgspec.convert(document, kind, dec_hook=hook)
    except msgspec.ValidationError as failure:
        message, path = _explain(failure, document, kind)
        raise error(f"{source}:{find_line(text, path)}: {message}") from failure
    except RecursionError as failure:
        raise error(f"{source}: tables are nested too deeply") from failure


def copied(document: Any) -> Any:  # noqa: ANN401 - any TOML value
    """Return a copy of a document whose tables and arrays can be changed."""
    if isinstance(document, Mapping):
        return {key: copied(value) for key, value in document.items()}
    if isinstance(document, list):
        return [copied(value) for value in document]
    return document


def problems(document: object, kind: object, path: KeyPath = ()) -> Iterator[Problem]:
    """Yield every problem for which :func:`convert` refuses ``document``, not the first alone.

    Values that are :data:`REMOVED` have none.
    """
    if document is REMOVED:
        return
    fields = {field.encode_name: field for field in _fields(kind)}
    elements = next((a for a in map(_element, _options(kind)) if a is not None), None)
    if fields and isinstance(document, Mapping):
        for key, value in document.items():
            if key in fields:
                yield from problems(value, fields[key].type, (*path, key))
            else:
                yield Problem(*_unknown_key(key, kind, path))
        for name, field in fields.items():
            if field.required and name not in document:
                yield Problem(*_missing_key(name, path), is_missing=True)
    elif elements is not None and isinstance(document, list):
        for index, value in enumerate(document):
            yield from problems(value, elements, (*path, index))
    else:
        try:
            msgspec.convert(document, kind, dec_hook=hook)
        except msgspec.ValidationError as failure:
            match = _VALIDATION.fullmatch(str(failure))
            yield Problem(*_reword(match[1] if match else str(failure), kind, path))


def find_line(text: str, path: KeyPath) -> int:
    """Return the line on which ``path`` is set in ``text``, which is valid TOML.

    For a path that the text does not set: the line of the innermost table that it does set.
    """
    return find_lines(text, [path])[0]


def find_lines(text: str, paths: Sequence[KeyPath]) -> list[int]:
    """Return the line of each path as :func:`find_line` does, in one pass through ``text``."""
    wanted = {path[:length] for path in paths for length in range(len(path) + 1)}
    lines: dict[KeyPath, int] = {(): 1}
    for place, number in _places(text, wanted):
        if place in wanted:
            lines.setdefault(place, number)
    return [
        next(lines[path[:length]] for length in range(len(path), -1, -1) if path[:length] in lines)
        for path in paths
    ]


def show_path(path: KeyPath) -> str:
    """Return ``path`` as ``host.device[2].vectors``; indexes count from 0."""
    out = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return one_line(out.removeprefix("."))


def _tokens(text: str) -> Iterator[_Token]:
    """Yield the tokens of TOML with their lines; line breaks only where they end a statement."""
    line, depth = 1, 0
    for match in re.finditer(_TOKEN, f"{text}\n"):
        symbol = match[0]
        if match.lastgroup is not None and (symbol != "\n" or not depth):
            yield symbol, line
        line += symbol.count("\n")
        depth += (symbol in _CLOSING) - (symbol in _OPENING)


def _places(text: str, wanted: Collection[KeyPath]) -> Iterator[tuple[KeyPath, int]]:
    """Yield the path and the line of each key, table, value and element in valid TOML.

    Values of which no place is wanted are passed over: time and memory are linear in the text
    whatever is nested in it.

    :param wanted: paths, each with all paths that lead to it.
    """
    tokens = _tokens(text)
    table: KeyPath = ()
    lengths: dict[KeyPath, int] = {}  # of arrays of tables, so far
    for symbol, line in tokens:
        if symbol == "[":
            symbol, line = next(tokens)
            is_array = symbol == "["
            if is_array:
                symbol, line = next(tokens)
            table = ()
            while symbol != "]":
                if symbol != ".":
                    table = (*table, *_last(table, lengths), _unquoted(symbol))
                    yield table, line
                symbol, line = next(tokens)
            if is_array:
                next(tokens)  # the second bracket
                lengths[table] = lengths.get(table, 0) + 1
            table = (*table, *_last(table, lengths))
            yield table, line
        elif table in wanted and symbol != "\n":
            yield from _entry(symbol, line, tokens, table, wanted)
        elif symbol != "\n":
            next(symbol for symbol, _line in tokens if symbol == "\n")


def _last(table: KeyPath, lengths: dict[KeyPath, int]) -> KeyPath:
    """Return the index of the last element of an array of tables, nothing for another table."""
    return (lengths[table] - 1,) if table in lengths else ()


def _entry(
    symbol: str, line: int, tokens: Iterator[_Token], table: KeyPath, wanted: Collection[KeyPath]
) -> _Places:
    """Yield the places of ``key = value``, which starts with ``symbol``; return what ends it."""
    path = table
    while symbol != "=":
        if symbol != ".":
            path = (*path, _unquoted(symbol))
            yield path, line
        symbol, line = next(tokens)
    return (yield from _value(*next(tokens), tokens, path, wanted))


def _value(
    symbol: str, line: int, tokens: Iterator[_Token], path: KeyPath, wanted: Collection[KeyPath]
) -> _Places:
    """Yield the places of a value and of what is in it; return the symbol that ends it."""
    yield path, line
    if symbol not in _CLOSING or path not in wanted:
        return _skip(symbol, tokens)
    closing = _CLOSING[symbol]
    for index in count():
        inner, line = next(tokens)
        if inner == closing:
            break
        if symbol == "{":
            inner = yield from _entry(inner, line, tokens, path, wanted)
        elif (*path, index) in wanted:
            inner = yield from _value(inner, line, tokens, (*path, index), wanted)
        else:
            inner = _skip(inner, tokens)
        if inner == closing:
            break
    return _skip("", tokens)


def _skip(symbol: str, tokens: Iterator[_Token]) -> str:
    """Skip a value that starts with ``symbol``, and return the symbol that ends it."""
    depth = int(symbol in _CLOSING)
    for inner, _line in tokens:
        if not depth and inner in _ENDS:
            return inner
        depth += (inner in _CLOSING) - (inner in _OPENING)
    return "\n"


def _unquoted(symbol: str) -> str:
    """Return the key that ``symbol`` stands for."""
    if symbol.startswith('"') and "\\" in symbol:
        return str(tomllib.loads(f"key = {symbol}")["key"])
    return symbol[1:-1] if symbol[0] in "\"'" else symbol


def hook(kind: type, value: object) -> object:
    """Convert a value to a type that msgspec does not know: a :class:`Number`.

    :raise ValueError: when it is not one.
    """
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
            key = _invalid_key(document, kind)
            if key is None:
                break
            path.append(key)
        else:
            path.append(int(step[2]) if step[2] else step[1])
        kind = _type_below(kind, path[-1])
        document = _below(document, path[-1])
    return _reword(message, kind, tuple(path))


def _reword(message: str, kind: object, path: KeyPath) -> tuple[str, KeyPath]:
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL):
        return _unknown_key(match[1], kind, path)
    if match := re.fullmatch(r"Object missing required field `(.*)`", message):
        return _missing_key(match[1], path)
    message = message.replace(" | null`", "`")
    words = re.sub(r"`([^`]*)`", lambda match: _WORDS.get(match[1], match[1]), message)
    plain = one_line(words[:1].lower() + words[1:])
    if valid := _values(kind):
        plain += f"; valid values: {valid}"
    return f"{show_path(path) or 'document'}: {plain}", path


def _unknown_key(key: str, kind: object, path: KeyPath) -> tuple[str, KeyPath]:
    keys = sorted(field.encode_name for field in _fields(kind))
    near = did_you_mean(key, keys)
    return (
        f"unknown key {one_line(repr(key))} {_place(path)}; {near}valid keys: {', '.join(keys)}",
        (*path, key),
    )


def _missing_key(key: str, path: KeyPath) -> tuple[str, KeyPath]:
    return f"required key '{key}' is missing {_place(path)}", path


def _place(path: KeyPath) -> str:
    table = ".".join(step for step in path if isinstance(step, str))
    return f"in [{one_line(table)}]" if table else "at top level"


def _element(kind: object) -> object | None:
    """Return the type of the elements of a list or a tuple; None for another type."""
    is_array = typing.get_origin(kind) in {tuple, list}
    return typing.get_args(kind)[0] if is_array else None


def _invalid_key(document: object, kind: object) -> str | None:
    """Return the key of the invalid value in a dict, which msgspec does not report."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            try:
                msgspec.convert(value, _type_below(kind, key), dec_hook=hook)
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
    """Return ``text`` as one printable line, shortened for a message."""
    shown = printable(str(text)[: _MAX_SHOWN + 1])
    return shown if len(str(text)) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "…"
