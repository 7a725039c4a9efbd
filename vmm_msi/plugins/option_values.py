"""The options of a strategy: from text to the type it declares, and its forms."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from vmm_msi.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from msgspec.inspect import Type

    from vmm_msi.plugins.hookspecs import Options

#: Bounds of a number, as :mod:`msgspec.inspect` names them.
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def convert(strategy: str, kind: type[Options], given: Iterable[tuple[str, Any]]) -> Options:
    """Convert options as they were written into the type that the strategy declares.

    :raise UsageError: when an option is unknown or has a wrong value; the message names the valid.
    """
    values = dict(given)
    valid = kind.__struct_fields__
    unknown = sorted(values.keys() - set(valid))
    if unknown:
        names = [*valid, "profile"]
        raise UsageError(
            f"strategy {strategy}: unknown option {unknown[0]!r}; "
            f"{did_you_mean(unknown[0], names)}valid: {', '.join(names)}"
        )
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"strategy {strategy}: {_wrong_value(kind, values) or error}") from error


def _wrong_value(kind: type[Options], values: Mapping[str, Any]) -> str:
    """Return which value is wrong and what is valid; empty when each is right on its own."""
    for name, value in values.items():
        try:
            msgspec.convert({name: value}, kind, strict=False)
        except msgspec.ValidationError:
            return f"invalid value {name}={value!r}; valid: {name}: {_valid(kind, name)}"
    return ""


def _valid(kind: type[Options], name: str) -> str:
    import msgspec.inspect

    info = msgspec.inspect.type_info(kind)
    fields = info.fields if isinstance(info, msgspec.inspect.StructType) else ()
    return next((_describe(field.type) for field in fields if field.name == name), "?")


def _describe(kind: Type) -> str:
    from msgspec.inspect import EnumType, LiteralType, UnionType

    match kind:
        case LiteralType(values=values):
            return " | ".join(map(str, values))
        case EnumType(cls=members):
            return " | ".join(str(member.value) for member in members)
        case UnionType(types=types):
            return " | ".join(map(_describe, types))
    name = type(kind).__name__.removesuffix("Type").lower()
    bounds = [(sign, getattr(kind, bound, None)) for bound, sign in _BOUNDS.items()]
    return " ".join([name, *(f"{sign} {value}" for sign, value in bounds if value is not None)])


def forms(options: type[Options]) -> Iterator[tuple[tuple[str, object], ...]]:
    """Yield the forms in which a strategy is compared.

    An option that is declared as one of several literals makes a form of each of them; other
    options are left at their defaults.
    """
    hints = get_type_hints(options)
    literals = {
        name: get_args(hints[name])
        for name in options.__struct_fields__
        if get_origin(hints[name]) is Literal
    }
    for values in product(*literals.values()):
        yield tuple(zip(literals, values, strict=True))
