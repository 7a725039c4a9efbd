"""``vmm-msi bind``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.cli.common import (
    add_config,
    add_format,
    load_config,
    load_plugins,
    print_json,
    print_text,
)
from vmm_msi.cli.domain_options import add_connection, add_target, in_libvirt

if TYPE_CHECKING:
    import argparse

#: Exit code if the kernel refused a device.
EXIT_REFUSED = 5


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_target(
        parser,
        devices="*",
        what="host PCI address; default: the devices whose record names the kernel as their binder",
    )
    add_connection(parser)
    parser.add_argument(
        "--strategy",
        metavar="NAME[:key=value,…]",
        help="bind with direct, coerced or multi-its:mode=s2; default: the strategy of the record",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--batched",
        action="store_true",
        help="bind all devices before any address is written; default: device by device",
    )
    mode.add_argument(
        "--unbind",
        action="store_true",
        help="withdraw the bindings; default DEVICE: every device that has one",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the commands for the kernel; change nothing"
    )
    add_format(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Bind the devices of a running guest in the kernel, or unbind them."""
    from vmm_msi.library import bindings
    from vmm_msi.libvirt_driver import connect
    from vmm_msi.report import bindings as report

    plugins = load_plugins(args, load_config(args))
    # Reading what the guest wrote requires a writable connection, also for a preview.
    with in_libvirt(args.domain), connect(args.connect) as connection:
        if args.unbind:
            result = bindings.unbind(connection, args.domain, args.device, dry_run=args.dry_run)
        else:
            result = bindings.bind(
                connection,
                args.domain,
                args.device,
                args.strategy,
                batched=args.batched,
                dry_run=args.dry_run,
                plugins=plugins,
            )
    if args.format == "json":
        print_json(result.to_json())
    else:
        print_text(partial(report.lines_of, result))
    return EXIT_REFUSED if result.is_refused else 0
