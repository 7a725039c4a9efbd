"""Compare worlds: one host and guest with some values changed, or with another scenario."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import ScenarioError, UsageError
from vmm_msi.host.scenario import load_scenario, scenario_of_document
from vmm_msi.host.scenario_keys import Change, ScenarioEditor, Setting, value_of
from vmm_msi.report.worlds import Axis, World

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_msi.types import Scenario

#: Worlds of one comparison.
MAX_WORLDS = 256
_OPENING, _CLOSING = "[{", "]}"


def changed(
    scenario: Scenario, settings: Iterable[Setting], option: str = "--set"
) -> tuple[Scenario, tuple[Change, ...]]:
    """Return a scenario with some values changed, and what changed.

    :param option: for messages.
    :raise UsageError: for a key that does not exist.
    :raise ScenarioError: if the values contradict each other or the rest.
    """
    settings = tuple(settings)
    if not settings:
        return scenario, ()
    editor = ScenarioEditor(scenario)
    changes: list[Change] = []
    for setting in settings:
        try:
            changes += editor.set(setting)
        except UsageError as error:
            raise UsageError(f"{option} {error}") from error
    source = f"{option} {', '.join(setting.key for setting in settings)}"
    world = scenario_of_document(editor.document, source)
    host = replace(world.host, source=scenario.host.source)
    return replace(world, host=host), tuple(changes)


def axis_of(text: str) -> Axis:
    """Read ``KEY=VALUE,…``.

    :raise UsageError: for another form.
    """
    setting = Setting.parse(text, "--vary")
    _key, _, values = text[len(setting.key) :].partition("=")
    parts = tuple(value_of(part) for part in split_values(values))
    if len(parts) < 2:
        raise UsageError(f"--vary {text}: one value; give several with commas, or use --set")
    return Axis(setting.key, parts)


def split_values(text: str) -> Iterator[str]:
    """Yield the values between commas; those in brackets, braces or quotes do not separate."""
    depth, quote, start = 0, "", 0
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif character == "," and depth <= 0:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def varied(
    scenario: Scenario, axes: Sequence[Axis], settings: Sequence[Setting] = ()
) -> list[World]:
    """Return the world of each combination of values.

    :param settings: of all worlds.
    :raise UsageError: for a key that does not exist, or too many worlds.
    :raise ScenarioError: if no combination is possible.
    """
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_WORLDS:
        sizes = " x ".join(str(len(axis.values)) for axis in axes)
        raise UsageError(
            f"--vary: {sizes} = {count} worlds, and at most {MAX_WORLDS} are compared; give fewer "
            "values"
        )
    worlds = []
    for values in product(*(axis.values for axis in axes)):
        given = tuple(Setting(axis.key, value) for axis, value in zip(axes, values, strict=True))
        name = ", ".join(map(str, given))
        try:
            world, changes = changed(scenario, (*settings, *given), "--vary")
        except ScenarioError as error:
            worlds.append(World(name, given, (), None, error.errors[0]))
        else:
            worlds.append(World(name, given, changes, world))
    if all(world.scenario is None for world in worlds):
        raise ScenarioError(*dict.fromkeys(world.error for world in worlds))
    return worlds


def against(scenario: Scenario, settings: Sequence[Setting], other: str) -> list[World]:
    """Return two worlds: the scenario with ``settings``, and what ``--against`` names.

    :param other: a scenario file, or a text ``--set KEY=VALUE …``, which changes the scenario in
        place of ``settings``.
    :raise UsageError: for a key that does not exist.
    :raise ScenarioError: if a file cannot be read, or values contradict each other.
    """
    first, changes = changed(scenario, settings)
    source = scenario.host.source
    worlds = [World(_name(source, settings), tuple(settings), changes, first)]
    if other.lstrip().startswith("--"):
        others = against_settings(other)
        second, changes = changed(scenario, others, "--against --set")
        worlds.append(World(_name(source, others), others, changes, second))
    else:
        path = Path(other)
        worlds.append(World(str(path), (), (), load_scenario(path)))
    return worlds


def _name(source: str, settings: Sequence[Setting]) -> str:
    given = ", ".join(map(str, settings))
    return f"{source} with {given}" if given else source


def against_settings(text: str) -> tuple[Setting, ...]:
    """Return the settings of ``--set KEY=VALUE …``.

    :raise UsageError: for another form.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--against {text!r}: {error}") from error
    settings = []
    while words:
        option, equals, value = words.pop(0).partition("=")
        if option != "--set" or (not equals and not words):
            raise UsageError(
                f"--against {text!r}: not a FILE and not of the form --set KEY=VALUE …"
            )
        settings.append(Setting.parse(value if equals else words.pop(0), "--against --set"))
    return tuple(settings)
