"""Check a plugin against the contract when it is registered, and say how to fix a mistake."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from vmm_msi.errors import did_you_mean
from vmm_msi.plugins import hookspecs
from vmm_msi.plugins.base import Plugin
from vmm_msi.plugins.hookspecs import (
    HOOK_PREFIX,
    PROJECT,
    Needs,
    Options,
    PluginInfo,
    PluginKind,
)
from vmm_msi.plugins.option_values import forms

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping

#: Parameters of each hook, by its name.
HOOKS: Mapping[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(function).parameters)
    for name, function in vars(hookspecs).items()
    if hasattr(function, f"{PROJECT}_spec")
}
_REQUIRED = {
    PluginKind.STRATEGY: (
        "vmm_msi_attach_device",
        "vmm_msi_prepare_msi",
        "vmm_msi_detach_device",
    ),
    PluginKind.ITS_SELECTOR: ("vmm_msi_select_its",),
    PluginKind.OBSERVER: (),
    PluginKind.DOCTOR_RULE: ("vmm_msi_examine", "vmm_msi_finding_page"),
    PluginKind.HOST_READER: ("vmm_msi_read_host",),
    PluginKind.REPORT_FORMAT: ("vmm_msi_format_comparison",),
}
_BASE = {
    PluginKind.STRATEGY: "Strategy",
    PluginKind.ITS_SELECTOR: "ItsSelector",
    PluginKind.OBSERVER: "Observer",
    PluginKind.DOCTOR_RULE: "DoctorRule",
    PluginKind.HOST_READER: "HostReader",
    PluginKind.REPORT_FORMAT: "ReportFormat",
}
_OBSERVER_HOOKS = ("vmm_msi_veto", "vmm_msi_observe")
#: The values of ``--format`` that vmm-msi has of its own.
FORMATS = frozenset({"text", "json", "html", "markdown", "csv", "svg", "toml"})
#: A name is written on the command line, as a TOML key and into the domain XML.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ContractError(Exception):
    """What is wrong with a plugin, without the plugin's name."""


def instance(plugin: object) -> object:
    """Return the object that has the hooks: an instance where ``plugin`` is a class.

    :raise ContractError: when the class cannot be instantiated.
    """
    if not isinstance(plugin, type):
        return plugin
    try:
        return plugin()
    except Exception as error:
        raise ContractError(
            f"{plugin.__name__}() failed with {type(error).__name__}: {error}"
        ) from error


def check_names(plugin: object) -> None:
    """Check that a plugin has no attribute that looks like a hook and is not one.

    :raise ContractError: for the first unknown hook; it suggests the hook of a similar name.
    """
    for name, function in _hook_like(plugin):
        hook = _mark(function).get("specname") or name
        if hook not in HOOKS:
            raise ContractError(f"unknown hook {hook}; {_suggestion(hook, HOOKS)}")


def check_marks(plugin: object, hooks: Container[str]) -> None:
    """Check that every hook that a plugin has is one that it implements.

    :param hooks: the hooks that pluggy calls on it.
    :raise ContractError: for the first that lacks its mark.
    """
    for name, function in _hook_like(plugin):
        if (_mark(function).get("specname") or name) not in hooks:
            raise ContractError(
                f"{name} lacks @hookimpl, so it would never be called; mark it with @hookimpl"
            )


def check_parameters(plugin: object) -> None:
    """Check that the hook implementations name parameters of their hooks.

    :raise ContractError: for the first unknown parameter.
    """
    for name, function in _hook_like(plugin):
        hook = _mark(function).get("specname") or name
        parameters = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is inspect.Parameter.empty
        ]
        for parameter in parameters:
            if parameter not in HOOKS[hook]:
                raise ContractError(
                    f"{hook}({', '.join(parameters)}): unknown parameter {parameter!r}; "
                    f"{_suggestion(parameter, HOOKS[hook])}"
                )


def _hook_like(plugin: object) -> Iterator[tuple[str, Callable[..., object]]]:
    for name in dir(plugin):
        if name.startswith(HOOK_PREFIX):
            function = getattr(plugin, name, None)
            if callable(function):
                yield name, function


def _mark(function: Callable[..., object]) -> Mapping[str, Any]:
    """Return what pluggy's mark has on a function; empty without a mark."""
    mark: Mapping[str, Any] = getattr(function, f"{PROJECT}_impl", {})
    return mark


def _suggestion(name: str, valid: Iterable[str]) -> str:
    return did_you_mean(name, valid).rstrip() or f"valid: {', '.join(valid) or 'none'}"


def describe(plugin: object) -> PluginInfo:
    """Return the description of a plugin.

    :raise ContractError: when it does not describe itself, or wrongly.
    """
    function = getattr(plugin, "vmm_msi_describe", None)
    if function is None:
        raise ContractError(f"no hook vmm_msi_describe{_class_advice(plugin)}")
    try:
        info = function()
    except Exception as error:
        raise ContractError(
            f"vmm_msi_describe failed with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(info, PluginInfo):
        raise ContractError(f"vmm_msi_describe returned {info!r}; valid: a PluginInfo")
    _check_info(info)
    return info


def _class_advice(plugin: object) -> str:
    """Return which classes of a module are plugins, in case the module was named for them."""
    if not isinstance(plugin, ModuleType):
        return "; derive from Strategy, ItsSelector or Observer of vmm_msi.plugins"
    classes = [
        name
        for name, value in vars(plugin).items()
        if isinstance(value, type)
        and issubclass(value, Plugin)
        and value.__module__ == plugin.__name__
    ]
    if not classes:
        return ""
    return f"; did you mean {' or '.join(f'{plugin.__name__}:{name}' for name in classes)}?"


def _check_info(info: PluginInfo) -> None:
    for field in ("name", "summary", "guest", "host", "xml", "costs"):
        value: object = getattr(info, field)
        if not isinstance(value, str):
            raise ContractError(f"{field} is {value!r}; valid: a str")
    if not _NAME.fullmatch(info.name):
        raise ContractError(
            f"invalid name {info.name!r}; valid: letters, digits, '.', '_' and '-', the first a "
            "letter or a digit"
        )
    kind: object = info.kind
    if not isinstance(kind, PluginKind):
        valid = ", ".join(f"PluginKind.{member.name}" for member in PluginKind)
        raise ContractError(f"kind is {kind!r}; valid: {valid}")
    options: object = info.options
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise ContractError(f"options is {options!r}; valid: a subclass of Options")
    try:
        defaults = info.options()
        msgspec.json.encode(defaults)
        hash(defaults)
        choices = list(forms(info.options))
    except Exception as error:
        raise ContractError(
            f"{info.options.__name__}: each option must have a default that fits into JSON and can "
            f"be hashed: {error}"
        ) from error
    if info.kind is PluginKind.REPORT_FORMAT and info.name in FORMATS:
        raise ContractError(f"the format {info.name!r} is vmm-msi's own; use another name")
    if info.kind is PluginKind.STRATEGY:
        for form in choices:
            needs_of(info, info.options(**dict(form)))


def needs_of(info: PluginInfo, options: Options) -> Needs:
    """Return what a strategy needs with these options.

    :raise ContractError: when it does not say.
    """
    if info.needs is None:
        raise ContractError("a strategy must describe its needs; valid: a function of the options")
    try:
        needs: object = info.needs(options)
    except Exception as error:
        raise ContractError(
            f"needs({options}) failed with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(needs, Needs):
        raise ContractError(f"needs({options}) returned {needs!r}; valid: a Needs")
    return needs


def check_complete(kind: PluginKind, hooks: Iterable[str]) -> None:
    """Check that a plugin implements the hooks that its kind requires.

    :raise ContractError: for the first that is missing.
    """
    implemented = set(hooks)
    missing = [hook for hook in _REQUIRED[kind] if hook not in implemented]
    if kind is PluginKind.OBSERVER and implemented.isdisjoint(_OBSERVER_HOOKS):
        missing = [" or ".join(_OBSERVER_HOOKS)]
    if missing:
        raise ContractError(
            f"{kind} without {missing[0]}; implement it, or derive from "
            f"vmm_msi.plugins.{_BASE[kind]}"
        )
