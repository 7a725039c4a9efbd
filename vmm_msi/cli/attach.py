"""``vmm-msi attach``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.cli.common import (
    add_config,
    add_format,
    add_granule,
    add_host,
    load_config,
    load_host,
    load_plugins,
)
from vmm_msi.cli.guest import (
    add_connection,
    add_preview,
    add_target,
    is_preview,
    preview,
    print_change,
)
from vmm_msi.config import Choice
from vmm_msi.errors import UsageError
from vmm_msi.model import PciAddress

if TYPE_CHECKING:
    import argparse

    from vmm_msi.model import HostTopology


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_target(parser, devices="+", what="host PCI address, such as 0000:01:00.0")
    add_connection(parser)
    parser.add_argument(
        "--strategy",
        metavar="NAME[:key=value,…]",
        help="strategy for these devices; default: the configuration's, else identity",
    )
    add_host(parser, "the host, by default this machine")
    add_granule(parser)
    parser.add_argument(
        "--backend",
        choices=("qemu", "sim"),
        help="who binds the doorbells: qemu (QEMU and the kernel, the default on a QEMU "
        "connection) or sim (the model; real XML, modelled binding)",
    )
    parser.add_argument(
        "--allow-faults",
        action="store_true",
        help="attach also where the model says that MSIs will not arrive",
    )
    add_preview(parser)
    add_format(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Attach."""
    devices = tuple(PciAddress.parse(text) for text in args.device)
    named = Choice.parse(args.strategy) if args.strategy is not None else None
    settings = load_config(args)
    plugins = load_plugins(args, settings, [named] if named is not None else [])
    host = _host(args)
    from vmm_msi import provision
    from vmm_msi.libvirt_driver import connect

    request = provision.AttachRequest(
        domain=args.domain,
        devices=devices,
        named=named,
        carrier=None if args.backend is None else provision.Carrier(args.backend),
        allow_faults=args.allow_faults,
    )
    with connect(args.connect, readonly=is_preview(args)) as connection:
        change = provision.plan_attach(connection, plugins, settings, host, request)
        if preview(args, change):
            return 0
        provision.carry_out(connection, change, plugins)
    print_change(args, change, f"attached {', '.join(map(str, devices))}")
    return 0


def _host(args: argparse.Namespace) -> HostTopology:
    from vmm_msi.topology.live import load_live

    if args.host is not None:
        return load_host(args)
    if "://" in args.connect and not args.connect.split("://", 1)[1].startswith("/"):
        raise UsageError(f"{args.connect} is another machine: name a description of it with --host")
    return load_live()
