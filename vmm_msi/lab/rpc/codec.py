"""Convert values of :mod:`vmm_msi.types` to JSON values and back."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

ValueT = TypeVar("ValueT")


def to_wire(value: object) -> Any:  # noqa: ANN401
    """Return ``value`` as dicts, lists, strings and numbers."""
    return msgspec.to_builtins(value, enc_hook=_plain)


def from_wire(kind: type[ValueT], value: object) -> ValueT:
    """Read a value of type ``kind``.

    :raise ValueError: when it is not of that type (``msgspec.ValidationError``).
    """
    return msgspec.convert(value, kind, dec_hook=_typed)


def _plain(value: object) -> int:
    if isinstance(value, int):
        return int(value)
    raise NotImplementedError(f"{type(value)} has no JSON form")


def _typed(kind: type[Any], value: object) -> object:
    """Return an address or an id, which are subclasses of int."""
    if issubclass(kind, int) and isinstance(value, int):
        return kind(value)
    raise ValueError(f"expected {kind.__name__}, got {type(value).__name__}")
