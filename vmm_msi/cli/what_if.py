"""``vmm-msi compare --set``, ``--vary`` and ``--against``: other worlds than the one described."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.cli.common import FORMATS, print_text
from vmm_msi.errors import UsageError
from vmm_msi.terminal import StatusLine, print_error

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from typing import TextIO

    from vmm_msi.engine.compare import OpenBackend, Result
    from vmm_msi.library.comparison import Runs
    from vmm_msi.report.worlds import Axis, Ran, World
    from vmm_msi.types import Scenario


def add_what_if(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the host or the guest, by its key in a scenario file, such as "
        "guest.device[B].stage1=s1b or host.device[0000:02:00.0].its_group=[1]; VALUE is of TOML, "
        "or a text; none gives the default; may be repeated",
    )
    worlds = parser.add_mutually_exclusive_group()
    worlds.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="KEY=VALUE,…",
        help="compare all combinations of the values, and show what changes the outcome; may be "
        "repeated",
    )
    worlds.add_argument(
        "--against",
        metavar="FILE",
        help="show what differs from another scenario: a TOML file, or --set KEY=VALUE … as one "
        "word, which changes the host and the guest in place of the command's own --set",
    )


def changed_scenario(args: argparse.Namespace, scenario: Scenario) -> Scenario:
    """Return the scenario with what ``--set`` changes, and show what that is.

    :raise UsageError: for a key that does not exist.
    :raise ScenarioError: if the values contradict each other.
    """
    if not args.set:
        return scenario
    from vmm_msi.host.scenario_keys import Setting
    from vmm_msi.library import what_if

    settings = tuple(map(Setting.parse, args.set))
    changed, changes = what_if.changed(scenario, settings)
    for change in changes:
        print_error(f"what if: {change}")
    return changed


def check_formats(args: argparse.Namespace) -> None:
    """Refuse what several worlds do not have.

    :raise UsageError: for ``--trace``, ``--schema`` and the picture of one path.
    """
    option = "--vary" if args.vary else "--against"
    if args.trace is not None or args.format == "svg" or args.format not in FORMATS:
        other = "--trace" if args.trace is not None else f"--format {args.format}"
        raise UsageError(f"{other} shows one world; use --set in place of {option}")
    if args.schema is not None:
        raise UsageError(f"--schema: {option} has a document of its own; leave it out")


def worlds_of(args: argparse.Namespace, scenario: Scenario) -> tuple[list[World], tuple[Axis, ...]]:
    """Return the worlds that the arguments describe, and the keys that vary.

    :raise UsageError: for a key that does not exist.
    :raise ScenarioError: if a scenario cannot be read, or no world is possible.
    """
    from vmm_msi.host.scenario_keys import Setting
    from vmm_msi.library import what_if

    settings = tuple(map(Setting.parse, args.set))
    if args.against is not None:
        return what_if.against(scenario, settings, args.against), ()
    axes = tuple(map(what_if.axis_of, args.vary))
    return what_if.varied(scenario, axes, settings), axes


def run_worlds(
    worlds: Sequence[World],
    runs_of: Callable[[Scenario], Runs],
    open_backends: Callable[[Scenario], AbstractContextManager[OpenBackend]],
) -> list[Ran]:
    """Run the strategies in each world, and show on standard error which one is running.

    :param runs_of: returns the strategies to run on a scenario.
    :param open_backends: opens what they run on.
    """
    from vmm_msi.report.worlds import Ran

    status = StatusLine(sys.stderr)
    runs = []
    try:
        for number, world in enumerate(worlds, 1):
            if world.scenario is None:
                runs.append(Ran(world))
                continue
            strategies = runs_of(world.scenario)
            results: list[Result] = []
            with open_backends(world.scenario) as open_backend:
                for choice in strategies.choices:
                    status.show(f"[world {number}/{len(worlds)}] {choice}")
                    results += strategies.results(choice, open_backend)
            runs.append(Ran(world, results))
    finally:
        status.clear()
    return runs


def write(args: argparse.Namespace, runs: Sequence[Ran], axes: Sequence[Axis], out: TextIO) -> None:
    """Write what differs between worlds in the format of the arguments."""
    if args.format == "json":
        from vmm_msi.report import what_if_json

        what_if_json.write(runs, axes, out)
        return
    from vmm_msi.report import what_if

    blocks = what_if.variation(runs, axes) if axes else what_if.two_worlds(*runs)
    if args.format == "text":
        print_text(partial(what_if.to_lines, blocks), out)
        return
    from vmm_msi.cli.provenance import provenance
    from vmm_msi.pages.formats import write_page

    out.write(write_page(what_if.to_page(runs, blocks, provenance(args)), args.format))
