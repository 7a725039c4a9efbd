"""``vmm-msi lab compare-guests``: run the truth table on real guests."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from vmm_msi.cli.common import add_format, print_json, print_text
from vmm_msi.cli.lab import Subcommand
from vmm_msi.cli.lab_host import add_itses, add_source, kernel_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from vmm_msi.lab.guest.cells import Predict
    from vmm_msi.types import GuestDomain, HostTopology, Verdict

#: Exit code when a guest did not do what the simulator predicted.
DISAGREES = 1

T = TypeVar("T")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    from vmm_msi.lab.guest.truth_table import COLUMNS, Sharing

    labels = ", ".join(column.label for column in COLUMNS)
    parser.add_argument(
        "--columns",
        default="",
        metavar="NAME[,…]",
        help=f"strategies to run, of {labels}; v2 to v15 are revisions of coerced (default: all)",
    )
    parser.add_argument(
        "--stage1",
        default="",
        metavar="MODE[,…]",
        help=f"rows to run, by the devices' use of stage 1: {', '.join(Sharing)} (default: all)",
    )
    parser.add_argument(
        "--vsmmus",
        type=int,
        choices=(1, 2),
        help="rows to run, by the number of vSMMUs (default: both)",
    )
    add_itses(parser, "1", 1)
    add_source(parser, "bind")
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Run the table; return 1 if a cell is not as predicted."""
    from vmm_msi.errors import UsageError
    from vmm_msi.lab.build.kernel_flavour import BIND
    from vmm_msi.lab.build.progress import Progress
    from vmm_msi.lab.guest.cells import CellRunner, TableResult, TruthTable
    from vmm_msi.lab.guest.host_counter import HostCounter
    from vmm_msi.lab.guest.its_log import ItsLog
    from vmm_msi.lab.guest.runner import Runner, shape_for
    from vmm_msi.lab.guest.table_guests import TableGuests
    from vmm_msi.lab.guest.truth_table import COLUMNS, Sharing, rows
    from vmm_msi.lab.machine.emulated_host import LabHost, logs_folder
    from vmm_msi.lab.machine.shape import NVME
    from vmm_msi.lab.rpc.link import AgentLink
    from vmm_msi.report import lab_compare_guests as report

    columns = _chosen("--columns", args.columns, {column.label: column for column in COLUMNS})
    modes = _chosen("--stage1", args.stage1, {str(mode): mode for mode in Sharing})
    chosen = [
        row
        for row in rows()
        if row.guest.sharing in modes and args.vsmmus in {None, row.guest.vsmmus}
    ]
    if not chosen:
        raise UsageError("lab compare-guests: no row is selected; a shared stage 1 has 1 vSMMU")
    begun = time.monotonic()
    progress = Progress(sys.stderr, "lab compare-guests")
    # In the order of their addresses, two are behind the first SMMU and one is behind the second.
    # With several ITSes both pairs have two.
    kinds = [NVME] * 3
    host = LabHost(
        replace(shape_for(kinds, 2, args.itses), kernel=kernel_of(args) or BIND),
        suite=args.suite,
        cache=args.cache,
        progress=progress,
        crash_logs=logs_folder(args.cache),
    )
    with host as lab, AgentLink(lab.agent_socket) as link:
        its_log = ItsLog(lab.its_log)
        runner = Runner(link, its_log, lab.boot_folder, progress, lab.words, lab.board.its_base)
        first, second, other = runner.devices(kinds)
        runner.prepare()
        pairs = {1: (first, second), 2: (first, other)}
        table = TruthTable(
            TableGuests(runner, link, lab.boot_folder, pairs),
            CellRunner(runner, link, HostCounter(link, lab.words)),
            predictor(lab.board.topology),
            progress,
            args.itses,
        )
        cells = list(table.run(chosen, columns))
        progress.clear()
    result = TableResult(runner.releases, cells, time.monotonic() - begun, args.itses)
    if args.format == "json":
        print_json(report.to_json(result))
    else:
        print_text(partial(report.to_lines, result))
    return 0 if all(cell.agrees for cell in cells) else DISAGREES


def predictor(host: HostTopology) -> Predict:
    """Return a function that simulates a strategy for the devices of a guest on a host."""
    from vmm_msi.config import Choice, Config
    from vmm_msi.engine.compare import compare
    from vmm_msi.host.resolve import with_devices
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import Scenario

    plugins = PluginManager.load()

    def predict(guest: GuestDomain, strategy: str) -> Sequence[Verdict]:
        known = with_devices(host, [device.host for device in guest.devices])
        selector = Config().its_selector(guest.name)
        (result,) = compare(plugins, Scenario(known, guest), [Choice.parse(strategy)], selector)
        return result.verdicts

    return predict


def _chosen(option: str, text: str, valid: Mapping[str, T]) -> list[T]:
    """Return the values that a list of names selects; all for an empty one.

    :raise UsageError: for an unknown name.
    """
    from vmm_msi.errors import UsageError, did_you_mean

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in valid:
            raise UsageError(
                f"lab compare-guests: {option} {name!r}; {did_you_mean(name, valid)}valid: "
                f"{', '.join(valid)}"
            )
    return [value for name, value in valid.items() if not names or name in names]


SUBCOMMANDS: dict[str, Subcommand] = {"compare-guests": Subcommand(configure, run)}
