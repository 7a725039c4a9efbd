"""``vmm-msi scenario init``: write a complete, commented scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.cli.common import HOST, add_granule, add_output, host_name, output_path
from vmm_msi.cli.domain_options import add_connection, add_domain
from vmm_msi.cli.scenario import write_text
from vmm_msi.errors import UsageError

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--from",
        dest="host",
        action="append",
        type=host_name,
        metavar="HOST",
        help=f"the host: {HOST}; may be repeated for several sources about one host; default: an "
        "example of two devices on two ITSes",
    )
    add_granule(parser)
    add_domain(parser, "with --from: the guest with the devices")
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="with --from: host PCI address of a device of the guest, such as 0000:01:00.0, in "
        "addition to those of --guest; may be repeated; default without --guest: every assignable "
        "device that the host lists",
    )
    add_connection(parser)
    add_output(parser, "the scenario")


def run(args: argparse.Namespace) -> int:
    """Write the scenario and return the exit code."""
    from vmm_msi.library import scenarios
    from vmm_msi.types import PciAddress

    selected = [PciAddress.parse(text) for text in args.device]
    if args.host is None:
        for name, value in (
            ("--guest", args.domain),
            ("--device", selected),
            ("--granule", args.granule),
        ):
            if value:
                raise UsageError(f"{name} needs --from: the example has a host and a guest")
        text = scenarios.example()
    else:
        from vmm_msi.cli.common import load_sources
        from vmm_msi.library import comparison

        guest = None
        if args.domain is not None:
            guest = comparison.guest_to_compare(args.domain, args.connect, selected)
        host = load_sources(args).topology
        text = scenarios.commented(comparison.scenario_of(host, selected, guest), host.source)
    write_text(text, output_path(args), force=args.force)
    return 0
