"""Check a plugin before its users do: contract, annotations, names, and the conformance suite."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vmm_msi.config import DEFAULT_SELECTOR, Choice
from vmm_msi.errors import PluginError, RefusedError, UsageError, did_you_mean
from vmm_msi.plugins import contract, hookspecs, option_values
from vmm_msi.plugins.base import Plugin
from vmm_msi.plugins.hookspecs import HOOK_PREFIX, PROJECT, PluginInfo, PluginKind
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.testing import conformance
from vmm_msi.testing.location import place_of, raised_at
from vmm_msi.testing.scenarios import sample_scenarios
from vmm_msi.testing.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from importlib.metadata import EntryPoint

#: Types that no hook takes or returns, unless its specification names them.
_BUILTIN = frozenset({"bool", "bytes", "dict", "float", "int", "list", "set", "str", "tuple"})


@dataclass(frozen=True, slots=True)
class Report:
    """A problem, where it is and where it was seen.

    :param check: name of the check.
    :param place: file and line.
    :param scenarios: the names of the sample scenarios, ``identity one-device`` with the form.
    """

    check: str
    place: str
    what: str
    remedy: str
    scenarios: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" [{self.check}]"
        if self.scenarios:
            more = len(self.scenarios) - 1
            where = f" [{self.check}: {self.scenarios[0]}{f' and {more} more' if more else ''}]"
        return " ".join(f"{self.place}: {self.what}; {self.remedy}{where}".split())


@dataclass(frozen=True)
class CheckedPlugin:
    """What was checked of one plugin.

    :param name: its own name; that of its module or class if it has none.
    :param origin: its module and class.
    :param info: its description; None if it cannot be registered.
    :param runs: checks that ran.
    """

    name: str
    origin: str
    info: PluginInfo | None
    runs: int
    problems: tuple[Report, ...]


def check_plugins(target: str) -> list[CheckedPlugin]:
    """Check a plugin, or each plugin of a module.

    :param target: the name of an installed plugin, or ``MODULE`` or ``MODULE:CLASS``; a module is
        also searched in the current folder.
    :raise UsageError: when it is neither.
    """
    points = {point.name: point for point in entry_points(group=PROJECT)}
    if target in points:
        point = points[target]
        candidates = [(_loaded(point.value, target, points), point.value)]
    else:
        candidates = _of_module(target, points)
    return [_check(plugin, origin, points) for plugin, origin in candidates]


def _of_module(target: str, points: Mapping[str, EntryPoint]) -> list[tuple[object, str]]:
    """Return the plugins of ``MODULE`` or ``MODULE:CLASS``, each with its origin."""
    name, colon, attribute = target.partition(":")
    if not all(part.isidentifier() for part in name.split(".")) or (colon and not attribute):
        raise UsageError(
            f"checking plugin {target!r}: no installed plugin has this name; "
            f"{did_you_mean(target, points)}installed: {', '.join(sorted(points))}; or name a "
            "MODULE or MODULE:CLASS"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    loaded = _loaded(target, target, points)
    if attribute or not isinstance(loaded, ModuleType) or hasattr(loaded, "vmm_msi_describe"):
        return [(loaded, target)]
    classes = [
        value
        for value in vars(loaded).values()
        if isinstance(value, type)
        and issubclass(value, Plugin)
        and value.__module__ == loaded.__name__
        and value.__dict__.get("name")
    ]
    return [(kind, f"{name}:{kind.__name__}") for kind in classes] or [(loaded, target)]


def _loaded(value: str, target: str, installed: Collection[str]) -> object:
    """Import what an entry point's value names; a failure is returned, not raised.

    :raise UsageError: when no such module exists.
    """
    module, _, attributes = value.partition(":")
    try:
        loaded: object = importlib.import_module(module)
        for attribute in filter(None, attributes.split(".")):
            loaded = getattr(loaded, attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise UsageError(
                f"checking plugin {target!r}: no installed plugin and no module has this name; "
                f"{did_you_mean(target, installed)}installed: {', '.join(sorted(installed))}"
            ) from error
        return error
    # A module that exits at import is as broken as a module that raises.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return error
    return loaded


def _check(candidate: object, origin: str, points: Mapping[str, EntryPoint]) -> CheckedPlugin:
    if isinstance(candidate, BaseException):
        what = f"cannot be imported: {type(candidate).__name__}: {candidate}"
        place = _import_place(candidate, origin)
        report = Report("contract", place, what, "make it importable on its own")
        return CheckedPlugin(origin, origin, None, 1, (report,))
    plugins = PluginManager()
    try:
        info = plugins.register(candidate, origin)
    except PluginError as error:
        return CheckedPlugin(origin, origin, None, 1, (_broken(candidate, origin, error),))
    plugin = plugins.plugin(info.name)
    reports = [*_name(plugin, info, origin, points), *_annotations(plugin)]
    runs = 3
    if info.kind is PluginKind.STRATEGY:
        plugins.register(points[DEFAULT_SELECTOR].load())
        more, ran = _conformance(plugins, info)
        reports += more
        runs += ran
    elif info.kind is PluginKind.ITS_SELECTOR:
        reports += _selector(plugins, info)
        runs += len(sample_scenarios())
    return CheckedPlugin(info.name, origin, info, runs, tuple(reports))


def _import_place(error: BaseException, origin: str) -> str:
    """Return the last place of an import that is in a file; a syntax error has its own."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    place, trace = origin, error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<") and Path(file) != Path(__file__) and "importlib" not in file:
            place = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _broken(candidate: object, origin: str, error: PluginError) -> Report:
    """Return the report of a plugin that breaks the contract; the message has the remedy."""
    what, _, remedy = str(error).removeprefix(f"plugin {origin}: ").rpartition("; ")
    hook = next((word for word in what.split() if word.startswith(HOOK_PREFIX)), "")
    cause = error.__cause__ and error.__cause__.__cause__
    place = raised_at(candidate, cause) or place_of(candidate, hook.partition("(")[0])
    if not what:
        is_plain = remedy.startswith("no hook ")
        base = "derive a class from Strategy of vmm_msi.plugins, and name it"
        what, remedy = remedy, base if is_plain else "see docs/plugins.md, Mistakes"
    return Report("contract", place, what, remedy)


def _name(
    plugin: object, info: PluginInfo, origin: str, points: Mapping[str, EntryPoint]
) -> Iterator[Report]:
    """Yield a report if the name belongs to another installed plugin."""
    module = origin.partition(":")[0]
    taken = points.get(info.name)
    is_kept = info.name == DEFAULT_SELECTOR
    if taken is not None and taken.module != module and not is_kept:
        yield Report(
            "names",
            place_of(plugin),
            f"the name {info.name!r} is taken by {taken.value}",
            "use another name: of two plugins with one name, none is loaded",
        )


def _annotations(plugin: object) -> Iterator[Report]:
    """Yield a report for each annotation of a hook that contradicts its specification."""
    for name in sorted(set(dir(plugin)) & set(contract.HOOKS)):
        given = _types(getattr(plugin, name))
        for parameter, specified in _types(getattr(hookspecs, name)).items():
            wrong = sorted((given.get(parameter, set()) - specified) & _BUILTIN)
            if wrong:
                shown = " | ".join(sorted(specified))
                what = f"{name}: {parameter} is annotated as {wrong[0]}"
                if parameter == "return":
                    what = f"{name} is annotated to return {wrong[0]}"
                yield Report("types", place_of(plugin, name), what, f"valid: {shown}")


def _types(function: Any) -> dict[str, set[str]]:  # noqa: ANN401
    """Return the names in the annotations of a function; type arguments are left out."""
    annotations: Mapping[str, object] = getattr(function, "__annotations__", {})
    return {
        name: {
            part.strip().partition("[")[0].rpartition(".")[2]
            for part in str(
                getattr(annotation, "__name__", annotation)
                if isinstance(annotation, type)
                else annotation
            ).split("|")
        }
        for name, annotation in annotations.items()
    }


def _conformance(plugins: PluginManager, info: PluginInfo) -> tuple[list[Report], int]:
    """Run the conformance suite on every form of a strategy in the simulator."""
    plugin, runs = plugins.plugin(info.name), 0
    seen: dict[tuple[str, str, str], tuple[Report, dict[str, None]]] = {}
    for form in option_values.forms(info.options):
        choice = Choice(info.name, form)
        for number, (name, scenario) in enumerate(sample_scenarios().items()):
            subject = Subject(plugins, choice, scenario)
            checks = conformance.SCENARIO_CHECKS
            if number == 0:
                checks = (*checks, *conformance.STRATEGY_CHECKS)
            for check in checks:
                runs += 1
                for problem in conformance.problems(check, subject):
                    place = raised_at(plugin, problem.cause) or place_of(plugin, problem.hook)
                    # A hook that fails does so in most checks.
                    group = check.__name__ if problem.cause is None else ""
                    first = Report(check.__name__, place, problem.what, problem.remedy)
                    known = seen.setdefault((group, place, problem.remedy), (first, {}))
                    known[1][f"{choice} on {name}"] = None
    reports = [replace(first, scenarios=tuple(names)) for first, names in seen.values()]
    return reports, runs


def _selector(plugins: PluginManager, info: PluginInfo) -> Iterator[Report]:
    """Yield a report if an ITS selector fails, or names an ITS that a device cannot use."""
    plugin = plugins.plugin(info.name)
    for name, scenario in sample_scenarios().items():
        for device in scenario.host.devices:
            try:
                plugins.select_its(info.name, device, scenario.host)
            except (PluginError, RefusedError) as error:
                cause = error.__cause__ or error
                hook = "vmm_msi_select_its"
                place = raised_at(plugin, cause) or place_of(plugin, hook)
                yield Report("select", place, str(error), "name one of device.its_group", (name,))
                return
