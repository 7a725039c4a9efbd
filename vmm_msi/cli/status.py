"""``vmm-msi status``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_format, add_granule, add_host, print_json, print_text
from vmm_msi.cli.domain_options import DOMAIN, add_connection

if TYPE_CHECKING:
    import argparse

    from vmm_msi.library.guest_status import Status


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "domain",
        metavar="DOMAIN",
        nargs="?",
        help=f"guest: {DOMAIN}; default: list all guests of libvirt",
    )
    add_connection(parser)
    parser.add_argument(
        "--scope",
        choices=("config", "live"),
        default="config",
        help="what to show, in virsh's words: config (the definition, for the next start; the "
        "default) or live (the running guest)",
    )
    add_host(parser, "this machine, if its own firmware tables do not describe it")
    add_granule(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Show the devices of one guest, or list all guests."""
    from vmm_msi.library.guest_status import statuses
    from vmm_msi.libvirt_driver import connect
    from vmm_msi.report import status as report

    if args.domain is None:
        with connect(args.connect, readonly=True) as connection:
            listed = statuses(connection)
        if args.format == "json":
            print_json(listed.to_json())
        else:
            print_text(partial(report.list_lines, listed.guests, listed.notes))
        return 0
    guest = _one(args)
    if args.format == "json":
        print_json(guest.to_json())
    else:
        print_text(partial(report.lines_of, guest))
    return 0


def _one(args: argparse.Namespace) -> Status:
    """Return the status of a guest, with measurements if it runs here."""
    from vmm_msi.domxml.document import is_document, named_in_libvirt, read_document
    from vmm_msi.library.guest_status import status, status_of
    from vmm_msi.libvirt_driver import connect

    if is_document(args.domain):
        return status_of(read_document(args.domain))
    with named_in_libvirt(args.domain), connect(args.connect, readonly=True) as connection:
        return status(
            connection,
            args.domain,
            args.scope,
            measure=True,
            host=args.host,
            granule=args.granule,
        )
