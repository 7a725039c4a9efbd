"""``vmm-msi status``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_format
from vmm_msi.cli.domain_options import add_connection, add_target, print_record

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_target(parser)
    add_connection(parser)
    parser.add_argument(
        "--scope",
        choices=("config", "live"),
        default="config",
        help="what is looked at, as virsh calls it: config (what the next start uses, the "
        "default) or live (what runs now)",
    )
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Show what vmm-msi recorded, and what of it is gone."""
    from vmm_msi import provision
    from vmm_msi.libvirt_driver import connect

    scope = provision.Scope(args.scope)
    with connect(args.connect, readonly=True) as connection:
        found = provision.status(connection, args.domain, scope)
    where = "what runs" if scope.live else "the definition"
    notes = [
        f"{part} is gone from {where}: somebody took it out; detach the device and attach it again"
        for part in found.gone
    ]
    print_record(args, found.name, found.record, notes)
    return 0
