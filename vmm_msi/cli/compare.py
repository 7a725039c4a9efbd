"""``vmm-msi compare``."""

from __future__ import annotations

import io
import logging
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.cli import what_if
from vmm_msi.cli.common import (
    FORMATS,
    add_config,
    add_format,
    add_granule,
    add_host,
    add_output,
    load_config,
    load_plugins,
    load_sources,
    output_path,
    print_text,
)
from vmm_msi.cli.domain_options import add_connection, add_domain
from vmm_msi.config import Choice
from vmm_msi.errors import UsageError
from vmm_msi.terminal import StatusLine, print_error, print_lines, write_bytes
from vmm_msi.types import Outcome, PciAddress, Scenario

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TextIO

    from vmm_msi.config import Config
    from vmm_msi.engine.compare import OpenBackend, Result
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.report.compare_expected import Expectation
    from vmm_msi.types import GuestDomain, Verdict

log = logging.getLogger(__name__)

#: Exit code when MSIs are lost that --fail-on names, or results are not as --expect says.
EXIT_FAILS = 1
#: The outcomes that --fail-on names.
FAILURES = {
    "undelivered": set(Outcome) - {Outcome.DELIVERED},
    "fault": {Outcome.S1_FAULT, Outcome.S2_FAULT, Outcome.MISROUTED},
    "refused": {Outcome.REFUSED},
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--scenario", type=Path, metavar="FILE", help="a TOML file with a host and a guest"
    )
    add_host(source, "a host")
    add_granule(parser)
    add_domain(parser, "with --host: the guest with the devices")
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="with --host: host PCI address of a device of the guest, such as 0000:01:00.0, in "
        "addition to those of --domain; may be repeated; default without --domain: every "
        "assignable device that the host lists",
    )
    add_connection(parser)
    parser.add_argument(
        "--strategy",
        action="append",
        default=[],
        metavar="NAME[:key=value,…]",
        help="a strategy with options; may be repeated; default: all strategies, in every form",
    )
    parser.add_argument(
        "--backend",
        choices=("sim", "lab", "iommufd"),
        default="sim",
        help="where the strategies run: in the simulator (sim, the default), on the kernel of an "
        "emulated Arm host (lab, see vmm-msi lab) or on this machine's /dev/iommu (iommufd)",
    )
    parser.add_argument(
        "--allow-faults",
        action="store_true",
        help="with --host: compare even if vmm-msi doctor reports errors for the host, the guest "
        "or a device; they become notes",
    )
    parser.add_argument(
        "--doorbells",
        choices=("its", "witness"),
        help="where MSIs arrive on a real kernel: at the host's ITS (its), or in a page of memory "
        "for each ITS of the scenario (witness); default: witness with --backend lab, its with "
        "--backend iommufd",
    )
    parser.add_argument(
        "--trace",
        metavar="DEVICE[:VECTOR]",
        help="show the path of one MSI with each strategy, place by place, in place of the table: "
        "host PCI address and number of the vector (default: 0); --format svg draws it, and "
        "without --trace that of the first device",
    )
    parser.add_argument(
        "--fail-on",
        choices=tuple(FAILURES),
        metavar="KIND",
        help="exit with 1 if an MSI of any strategy is lost in this way: undelivered (any), fault "
        "(a fault of the SMMU, or misrouted) or refused",
    )
    parser.add_argument(
        "--expect",
        type=Path,
        metavar="FILE",
        help="exit with 1 if the strategies in FILE, the JSON of an earlier run, do not have the "
        "outcomes, errnos and addresses that they have there",
    )
    what_if.add_what_if(parser)
    add_output(parser, "the result")
    add_format(parser, "html", "markdown", "csv", "svg", plugins=True)
    parser.add_argument(
        "--schema",
        type=int,
        choices=(1, 2),
        help="with --format json: its schema; 1 has a verdict for each vector, 2 (the default) one "
        "for the vectors that take the same path",
    )
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Compare; return 1 if ``--fail-on`` or ``--expect`` says so."""
    if args.schema is not None and args.format != "json":
        raise UsageError("--schema needs --format json")
    if args.trace is not None and args.format not in {"text", "svg"}:
        raise UsageError(
            f"--trace with --format {args.format}: it has the path of every MSI without; use "
            "--trace with --format text or svg"
        )
    is_several = bool(args.vary) or args.against is not None
    if is_several:
        what_if.check_formats(args)
    traced = None if args.trace is None else _traced(args.trace)
    expectation = None
    if args.expect is not None:
        from vmm_msi.report import compare_expected

        expectation = compare_expected.load(args.expect)
    named = [Choice.parse(text) for text in args.strategy]
    target = output_path(args)
    if target is not None:
        from vmm_msi.output import check_target

        check_target(target, force=args.force)
    settings = load_config(args)
    formats = set() if args.format in FORMATS else {args.format}
    plugins = load_plugins(args, settings, named, formats)
    if formats:
        from vmm_msi.plugins.hookspecs import PluginKind

        plugins.info(args.format, PluginKind.REPORT_FORMAT)
    scenario = _scenario(args, plugins, settings)
    from vmm_msi.library.comparison import Runs

    if is_several:
        worlds, axes = what_if.worlds_of(args, scenario)
        ran = what_if.run_worlds(
            worlds,
            lambda world: Runs.of(world, named, plugins, settings),
            lambda world: _backends(args, world),
        )
        with _opened(target, force=args.force) as out:
            what_if.write(args, ran, axes, out)
        return _exit_code(
            f"{one.world.name}: {problem}"
            for one in ran
            if one.world.scenario is not None
            for problem in _problems(args, expectation, one.results)
        )
    scenario = what_if.changed_scenario(args, scenario)
    runs = Runs.of(scenario, named, plugins, settings)
    with _backends(args, scenario) as open_backend:
        results = _with_progress(runs.choices, lambda choice: runs.results(choice, open_backend))
        seen: list[Result] = []
        with _opened(target, force=args.force) as out:
            if formats:
                write_bytes(_formatted(plugins, args.format, _noted(results, seen)), out)
            else:
                _write(args, scenario, _noted(results, seen), traced, out)
    return _exit_code(_problems(args, expectation, seen))


def _problems(
    args: argparse.Namespace, expectation: Expectation | None, results: Sequence[Result]
) -> Iterator[str]:
    """Yield a line for each result that ``--fail-on`` or ``--expect`` rejects."""
    if args.fail_on is not None:
        yield from _failures(results, args.fail_on)
    if expectation is not None:
        yield from expectation.differences(results)


def _exit_code(problems: Iterable[str]) -> int:
    """Print problems on standard error and return the exit code."""
    code = 0
    for problem in problems:
        print_error(f"vmm-msi compare: {problem}")
        code = EXIT_FAILS
    return code


def _write(
    args: argparse.Namespace,
    scenario: Scenario,
    results: Iterator[Result],
    traced: tuple[PciAddress, int] | None,
    out: TextIO,
) -> None:
    """Write the results in the format of the arguments."""
    if args.format == "json":
        from vmm_msi.report import compare_json

        compare_json.write(results, out, args.schema or compare_json.SCHEMA)
    elif args.format == "svg":
        from vmm_msi.report.chain_svg import chains_svg

        guest = scenario.guest
        device, vector = traced or (guest.devices[0].host, 0)
        verdicts = _verdicts(results, guest, device, vector)
        out.write(chains_svg(verdicts, guest, device, vector))
    elif args.format != "text":
        from vmm_msi.cli.provenance import provenance
        from vmm_msi.pages.formats import write_page
        from vmm_msi.report.compare_page import to_page

        out.write(write_page(to_page(scenario, tuple(results), provenance(args)), args.format))
    elif traced is not None:
        print_text(partial(_paths, results, scenario.guest, *traced), out)
    else:
        from vmm_msi.report.compare import compare_table

        print_text(partial(compare_table, scenario, results), out)


def _formatted(plugins: PluginManager, name: str, results: Iterator[Result]) -> bytes:
    """Return the results in the format of a plugin."""
    from vmm_msi.plugins.answers import format_comparison
    from vmm_msi.report import compare_json

    return format_comparison(plugins, name, compare_json.document(results))


def _traced(text: str) -> tuple[PciAddress, int]:
    """Return the device and the vector that ``--trace`` names.

    :raise UsageError: for another form.
    """
    address, _, vector = text.rpartition(":")
    if "." not in address:
        address, vector = text, "0"
    if not (vector.isascii() and vector.isdigit() and len(vector) < 5):
        raise UsageError(
            f"--trace {text!r}: no number of a vector behind the device; use a form such as "
            "0000:01:00.0 or 0000:01:00.0:3"
        )
    return PciAddress.parse(address), int(vector)


def _verdicts(
    results: Iterator[Result], guest: GuestDomain, device: PciAddress, vector: int
) -> Iterator[tuple[Result, Verdict]]:
    """Yield the verdict on one MSI with each strategy.

    :raise UsageError: if the guest has no such device, or the device no such vector.
    """
    for result in results:
        verdicts = [verdict for verdict in result.verdicts if verdict.device == device]
        if not verdicts:
            valid = ", ".join(str(assigned.host) for assigned in guest.devices[:8])
            raise UsageError(f"--trace {device}: the guest has no such device; valid: {valid}")
        verdict = next((v for v in verdicts if v.first <= vector < v.first + v.count), None)
        if verdict is None:
            last = max(v.first + v.count for v in verdicts) - 1
            raise UsageError(f"--trace {device}:{vector}: its vectors are 0 to {last}")
        yield result, verdict


def _paths(
    results: Iterator[Result], guest: GuestDomain, device: PciAddress, vector: int, width: int
) -> Iterator[str]:
    """Yield the path of one MSI with each strategy as text."""
    from vmm_msi.report.chain import to_lines

    for number, (result, verdict) in enumerate(_verdicts(results, guest, device, vector)):
        if number:
            yield ""
        yield from to_lines(result, verdict, guest, vector, width)


def _noted(results: Iterator[Result], seen: list[Result]) -> Iterator[Result]:
    """Yield results and append each to ``seen``."""
    for result in results:
        seen.append(result)
        yield result


def _failures(results: Sequence[Result], kind: str) -> Iterator[str]:
    """Yield a line for each strategy with MSIs that are lost in a way that --fail-on names."""
    from vmm_msi.engine.session import outcomes
    from vmm_msi.quantity import quantity
    from vmm_msi.report.compare_rows import name_of

    for result in results:
        counts = outcomes(result.verdicts)
        lost = [
            f"{counts[outcome]} {outcome}"
            for outcome in Outcome
            if outcome in FAILURES[kind] and counts[outcome]
        ]
        if lost:
            of = quantity(sum(counts.values()), "MSI")
            yield f"--fail-on {kind}: {name_of(result)}: {', '.join(lost)}, of {of}"


@contextmanager
def _backends(args: argparse.Namespace, scenario: Scenario) -> Iterator[OpenBackend]:
    """Yield the function that opens a backend of the selected kind."""
    if args.backend == "sim":
        if args.doorbells is not None:
            raise UsageError(
                "--doorbells needs --backend lab or --backend iommufd: the simulator has both kinds"
            )
        from vmm_msi.engine.compare import open_simulator

        yield open_simulator
        return
    from vmm_msi.iommu.linux.abilities import Doorbells
    from vmm_msi.iommu.linux.backend import IommufdBackend

    if args.backend == "lab":
        from vmm_msi.lab.backend.remote import lab_backends

        with lab_backends([scenario], Doorbells(args.doorbells or "witness")) as open_backend:
            yield open_backend
        return
    from vmm_msi.iommu.linux.iommufd import LinuxIommufd
    from vmm_msi.iommu.linux.raise_msi import trigger_of
    from vmm_msi.iommu.linux.vfio import bound_to_vfio

    doorbells = Doorbells(args.doorbells or "its")
    addresses = [device.host for device in scenario.guest.devices]
    # Report a missing /dev/iommu or trigger before a device is bound to vfio-pci.
    LinuxIommufd().close()
    for address in addresses:
        trigger_of(address)
    with bound_to_vfio(addresses):
        yield lambda scenario, profile: IommufdBackend(
            scenario.host, scenario.guest, doorbells, profile
        )


def _scenario(args: argparse.Namespace, plugins: PluginManager, settings: Config) -> Scenario:
    from vmm_msi.host.scenario import load_scenario
    from vmm_msi.library import comparison

    if args.scenario is not None:
        if args.domain is not None:
            raise UsageError("--domain needs --host: a scenario has its own guest")
        if args.device:
            raise UsageError("--device needs --host: a scenario has its own devices")
        if args.granule is not None:
            raise UsageError("--granule needs --host: a scenario has its own granule")
        return load_scenario(args.scenario)
    sources = load_sources(args)
    selected = [PciAddress.parse(text) for text in args.device]
    guest = None
    if args.domain is not None:
        guest = comparison.guest_to_compare(args.domain, args.connect, selected)
    if args.backend == "sim":
        notes = comparison.examine_all(
            sources, selected, guest, plugins, settings, allow_faults=args.allow_faults
        )
        print_lines((f"note: {note}" for note in notes), sys.stderr)
    return comparison.scenario_of(sources.topology, selected, guest)


def _with_progress(
    choices: Sequence[Choice], run_one: Callable[[Choice], Iterator[Result]]
) -> Iterator[Result]:
    """Run strategies one by one, and show on standard error which one is running."""
    status = StatusLine(sys.stderr)
    try:
        for number, choice in enumerate(choices, 1):
            status.show(f"[{number}/{len(choices)}] {choice}")
            yield from run_one(choice)
    finally:
        status.clear()


@contextmanager
def _opened(path: Path | None, *, force: bool) -> Iterator[TextIO]:
    """Yield standard output, or a file that appears when it is complete.

    :raise OutputError: when the file cannot be written.
    """
    if path is None:
        yield sys.stdout
        return
    from vmm_msi.output import output_file

    with output_file(path, force=force, mode=0o666) as file:
        text = io.TextIOWrapper(file, encoding="utf-8")
        yield text
        text.detach()
