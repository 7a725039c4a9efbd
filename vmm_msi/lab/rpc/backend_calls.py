"""Calls of a backend's methods as JSON values, with the types of the Backend protocol."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import TYPE_CHECKING, Any

from vmm_msi.iommu.backend import Backend
from vmm_msi.iommu.signatures import methods_of
from vmm_msi.lab.rpc.codec import from_wire, to_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm_msi.iommu.signatures import Method


@cache
def backend_methods() -> Mapping[str, Method]:
    """Return the methods that a request can name: all but ``close``, a verb of the agent."""
    methods = methods_of(Backend)
    del methods["close"]
    return methods


def arguments_to_wire(method: Method, *arguments: object, **named: object) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    return {name: to_wire(value) for name, value in method.bind(*arguments, **named).items()}


def arguments_from_wire(method: Method, arguments: object) -> dict[str, Any]:
    """Read the arguments of a call.

    :raise ValueError: when they are not those of the method.
    """
    if not isinstance(arguments, dict):
        raise ValueError("arguments are a JSON object")  # noqa: TRY004
    if arguments.keys() != method.parameters.keys():
        raise ValueError(
            f"arguments {', '.join(arguments) or 'none'}; valid: "
            f"{', '.join(method.parameters) or 'none'}"
        )
    return {name: from_wire(kind, arguments[name]) for name, kind in method.parameters.items()}


def result_to_wire(method: Method, result: object) -> Any:  # noqa: ANN401
    """Return a result; a value that is only compared is sent as its hash."""
    return hash(result) if method.result is Hashable else to_wire(result)


def result_from_wire(method: Method, result: object) -> Any:  # noqa: ANN401
    """Read a result.

    :raise ValueError: when it is not of the method's type.
    """
    return from_wire(int if method.result is Hashable else method.result, result)
