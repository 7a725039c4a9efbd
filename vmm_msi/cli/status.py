"""``vmm-msi status``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_format
from vmm_msi.cli.domain_options import DOMAIN, add_connection, print_record

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("domain", metavar="DOMAIN", help=f"guest: {DOMAIN}")
    add_connection(parser)
    parser.add_argument(
        "--scope",
        choices=("config", "live"),
        default="config",
        help="what to show, in virsh's words: config (the definition, for the next start; the "
        "default) or live (the running guest)",
    )
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Show the devices that vmm-msi recorded, and the elements that are missing."""
    from vmm_msi import provision
    from vmm_msi.domxml.document import is_document, named_in_libvirt, read_document
    from vmm_msi.libvirt_driver import connect

    scope = provision.Scope(args.scope)
    if is_document(args.domain):
        status = provision.status_of(read_document(args.domain))
    else:
        with (
            named_in_libvirt(args.domain),
            connect(args.connect, readonly=True) as connection,
        ):
            status = provision.status(connection, args.domain, scope)
    where = "the running guest" if scope.live else "the definition"
    notes = [
        f"{part} is missing from {where}: another program removed it; detach the device and attach "
        "it again"
        for part in status.gone
    ]
    print_record(args, status.name, status.record, notes)
    return 0
