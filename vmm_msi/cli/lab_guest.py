"""``vmm-msi lab guest``: run a real guest behind a nested SMMU in the emulated host."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_format, print_json, print_page, print_text
from vmm_msi.cli.lab import Subcommand
from vmm_msi.cli.lab_host import add_itses, add_source, kernel_of

if TYPE_CHECKING:
    import argparse

#: Exit code when an interrupt was lost, or vmm-msi status measured something wrong.
LOST = 1

_MOST = 1_000_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    from vmm_msi.lab.guest.runner import ACTS, KINDS
    from vmm_msi.lab.machine.shape import NVME, RANGES

    parser.add_argument(
        "--devices",
        default=NVME,
        metavar="KIND[,…]",
        help=f"devices to assign: {', '.join(KINDS)}; a kind may be repeated "
        "(default: %(default)s)",
    )
    low, high = RANGES["smmus"]
    parser.add_argument(
        "--vsmmus",
        type=int,
        default=1,
        metavar="N",
        help=f"number of physical SMMUs to spread the devices over, with a vSMMU for each; "
        f"{low} to {high} (default: %(default)s)",
    )
    add_itses(parser, "1", 1)
    parser.add_argument(
        "--strategy", metavar="NAME[:key=value,…]", help="strategy, as for vmm-msi attach"
    )
    parser.add_argument(
        "--count",
        type=int,
        default=1000,
        metavar="N",
        help="operations per device, such as reads; each causes at least one interrupt; "
        f"1 to {_MOST} (default: %(default)s)",
    )
    parser.add_argument(
        "--then",
        default="",
        metavar="ACT[,…]",
        help=f"actions on the running guest: {', '.join(ACTS)}; after each, the remaining devices "
        "are exercised again, once each after misdirect",
    )
    parser.add_argument(
        "--no-rmr",
        action="store_true",
        help="remove the RMRs from the guest's IORT, to see the failure",
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="write a recording to FILE, for vmm-msi replay; an existing FILE is not overwritten",
    )
    add_source(parser, "bind if the strategy needs it, else stock")
    add_format(parser, "html", "markdown", "csv")


def run(args: argparse.Namespace) -> int:
    """Run a guest; return 1 if an interrupt was lost or ``vmm-msi status`` was wrong."""
    from vmm_msi.errors import UsageError, did_you_mean
    from vmm_msi.lab.build.kernel_flavour import BIND, STOCK
    from vmm_msi.lab.build.progress import Progress
    from vmm_msi.lab.guest.its_log import ItsLog
    from vmm_msi.lab.guest.runner import ACTS, BINDING_ACTS, UNPLUG, Runner, RunSpec, shape_for
    from vmm_msi.lab.machine.emulated_host import LabHost, logs_folder
    from vmm_msi.lab.rpc.link import AgentLink
    from vmm_msi.output import check_target, write_output
    from vmm_msi.report import lab_guest as report

    kinds = [kind.strip() for kind in args.devices.split(",")]
    if not 1 <= args.count <= _MOST:
        raise UsageError(f"lab guest: --count {args.count}; valid is 1 to {_MOST}")
    acts = [act for act in args.then.split(",") if act]
    if unknown := [act for act in acts if act not in ACTS]:
        near = did_you_mean(unknown[0], ACTS)
        raise UsageError(f"lab guest: --then {unknown[0]!r}; {near}valid: {', '.join(ACTS)}")
    if acts.count(UNPLUG) > len(kinds):
        raise UsageError(f"lab guest: --then has more {UNPLUG} than there are devices")
    kernel = kernel_of(args)
    watch = kernel != STOCK and _is_bound_by_kernel(args.strategy)
    if watch and kernel is None:
        kernel = BIND
    shape = replace(shape_for(kinds, args.vsmmus, args.itses), kernel=kernel)
    if not watch and (idle := [act for act in acts if act in BINDING_ACTS]):
        raise UsageError(
            f"lab guest: --then {idle[0]}: the emulated host's kernel binds no MSIs; use a "
            "strategy that it binds, such as --strategy direct"
        )
    if args.record is not None:
        check_target(args.record, force=False)
    progress = Progress(sys.stderr, "lab guest")
    host = LabHost(
        shape,
        suite=args.suite,
        cache=args.cache,
        progress=progress,
        crash_logs=logs_folder(args.cache),
    )
    with host as lab, AgentLink(lab.agent_socket) as link:
        runner = Runner(
            link,
            ItsLog(lab.its_log),
            lab.boot_folder,
            progress,
            lab.words,
            lab.board.its_base,
        )
        # Before libvirtd starts: without udev it does not notice devices that appear later.
        devices = runner.devices(kinds)
        runner.prepare()
        spec = RunSpec(
            devices,
            args.strategy,
            args.count,
            acts,
            not args.no_rmr,
            args.record is not None,
            watch=watch,
        )
        result = runner.run(spec)
        progress.clear()
    if result.recording is not None:
        write_output(args.record, result.recording)
    if args.format == "json":
        print_json(report.to_json(result))
    elif args.format != "text":
        from vmm_msi.cli.provenance import provenance
        from vmm_msi.report.lab_guest_page import to_page

        print_page(to_page(result, provenance(args)), args.format)
    else:
        print_text(partial(report.to_lines, result))
    return 0 if result.complete and result.status_agrees else LOST


def _is_bound_by_kernel(strategy: str | None) -> bool:
    """Return whether QEMU cannot apply a strategy, but a kernel with guest MSI bindings can.

    :raise UsageError: when neither can.
    """
    if strategy is None:
        return False
    from vmm_msi.config import Choice
    from vmm_msi.engine.binders import applied_by
    from vmm_msi.engine.setup import needs_of
    from vmm_msi.errors import UsageError
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import BinderKind

    plugins = PluginManager.load()

    def binder(choice: Choice) -> BinderKind:
        return applied_by(choice, needs_of(plugins, choice))

    requested = binder(Choice.parse(strategy))
    if requested is BinderKind.SIM:
        valid = ", ".join(str(c) for c in plugins.choices() if binder(c) is not BinderKind.SIM)
        raise UsageError(
            f"lab guest: --strategy {strategy}: neither QEMU nor a kernel of the lab applies it; "
            f"use one of {valid}; vmm-msi compare simulates it, and --no-rmr shows a guest whose "
            "MSIs nothing binds"
        )
    return requested is BinderKind.KERNEL


SUBCOMMANDS: dict[str, Subcommand] = {"guest": Subcommand(configure, run)}
