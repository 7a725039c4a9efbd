"""``vmm-msi scenario minimise``: the smallest scenario with the same outcome."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_config, add_output, load_config, load_plugins, output_path
from vmm_msi.cli.scenario import write_text
from vmm_msi.terminal import StatusLine, print_error

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a TOML file with host and guest")
    parser.add_argument(
        "--strategy",
        required=True,
        metavar="NAME[:key=value,…]",
        help="the strategy whose outcome is kept, with options",
    )
    parser.add_argument(
        "--device",
        metavar="ADDRESS",
        help="host PCI address of the device whose outcome is kept; default: the first whose MSIs "
        "are not delivered",
    )
    parser.add_argument(
        "--picture", type=Path, metavar="SVG", help="draw the path of its MSI into a file"
    )
    add_output(parser, "the scenario")
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Write the smallest scenario and return the exit code."""
    from vmm_msi.config import Choice
    from vmm_msi.host.scenario import load_scenario
    from vmm_msi.library.comparison import Runs
    from vmm_msi.library.minimise import Minimiser
    from vmm_msi.output import check_target
    from vmm_msi.quantity import quantity
    from vmm_msi.types import PciAddress

    device = None if args.device is None else PciAddress.parse(args.device)
    choice = Choice.parse(args.strategy)
    target = output_path(args)
    for path in (target, args.picture):
        if path is not None:
            check_target(path, force=args.force)
    settings = load_config(args)
    plugins = load_plugins(args, settings, [choice])
    runs = Runs.of(load_scenario(args.file), [choice], plugins, settings)
    status = StatusLine(sys.stderr)
    try:
        minimised = Minimiser(
            runs,
            device,
            lambda size, count: status.show(f"{quantity(size, 'value')} left, {count} runs"),
        ).minimise()
    finally:
        status.clear()
    write_text(minimised.to_text(str(args.file), args.strategy), target, force=args.force)
    if args.picture is not None:
        from vmm_msi.report.chain_svg import chains_svg

        verdict = minimised.verdict
        guest, device, vector = minimised.scenario.guest, verdict.device, verdict.first
        drawing = chains_svg([(minimised.result, verdict)], guest, device, vector)
        write_text(drawing, args.picture, force=args.force)
    print_error(
        f"kept: {minimised.verdict.device} {minimised.verdict.outcome}; ran the strategy "
        f"{quantity(minimised.runs, 'time')}"
    )
    return 0
