"""The methods of a protocol class, with the types of their parameters and results.

A protocol class is the only place that spells its signatures out. Code that sends, receives or
checks calls of its methods uses the annotations.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Mapping


class Method(NamedTuple):
    """The signature of a method.

    :param parameters: the type of each parameter, by name, in their order, without ``self``.
    :param result: the type of the result; ``NoneType`` for none.
    """

    signature: inspect.Signature
    parameters: Mapping[str, Any]
    result: Any

    def bind(self, *arguments: object, **named: object) -> dict[str, Any]:
        """Return the value of every parameter of a call, by name.

        :raise TypeError: when the arguments do not fit the signature.
        """
        bound = self.signature.bind(*arguments, **named)
        bound.apply_defaults()
        return bound.arguments


def methods_of(protocol: type) -> dict[str, Method]:
    """Return the public methods of a class by name, in the order of its body."""
    methods = {}
    for name, function in vars(protocol).items():
        if name.startswith("_") or not isinstance(function, FunctionType):
            continue
        hints = get_type_hints(function, include_extras=True)
        result = hints.pop("return")
        signature = inspect.signature(function)
        without_self = list(signature.parameters.values())[1:]
        methods[name] = Method(signature.replace(parameters=without_self), hints, result)
    return methods
