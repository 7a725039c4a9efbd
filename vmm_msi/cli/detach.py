"""``vmm-msi detach``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_config, add_format, load_config, load_plugins
from vmm_msi.cli.domain_options import (
    add_connection,
    add_preview,
    add_scope,
    add_target,
    connected,
    in_libvirt,
    is_preview,
    preview,
    print_change,
)

if TYPE_CHECKING:
    import argparse


#: The word for every device, instead of no device at all, which may be a slip.
ALL = "all"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_target(
        parser,
        devices="+",
        what=f"host PCI address, or {ALL} for every device that attach assigned",
    )
    add_connection(parser)
    add_scope(parser)
    parser.add_argument(
        "--release-timeout",
        type=float,
        metavar="SECONDS",
        default=10.0,
        help="how long a running guest may take to release a device; default: 10",
    )
    add_preview(parser)
    add_format(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Detach."""
    from vmm_msi.library import changes
    from vmm_msi.provision import DetachRequest

    devices = () if args.device == [ALL] else args.device
    request = DetachRequest(args.domain, devices, args.scope, args.release_timeout)
    plugins = load_plugins(args, load_config(args))
    with in_libvirt(args.domain), connected(args) as connection:
        if is_preview(args):
            preview(args, changes.plan_detach(connection, request), connection)
            return 0
        change = changes.detach(connection, request, plugins)
    print_change(args, change)
    return 0
