"""``vmm-msi attach``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.cli.common import (
    add_config,
    add_format,
    add_granule,
    add_host,
    check_uris,
    load_config,
    load_host,
    load_plugins,
)
from vmm_msi.cli.domain_options import (
    add_connection,
    add_preview,
    add_scope,
    add_target,
    is_preview,
    preview,
    print_change,
)
from vmm_msi.config import Choice
from vmm_msi.errors import UsageError
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    import argparse

    from vmm_msi.provision import AttachRequest


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_target(parser, devices="+", what="host PCI address, such as 0000:01:00.0")
    add_connection(parser)
    add_scope(parser)
    add_host(parser, "the host, by default this machine")
    add_granule(parser)
    add_attach_options(parser)
    add_preview(parser)
    add_format(parser)
    add_config(parser)


def add_attach_options(parser: argparse.ArgumentParser) -> None:
    """Add what is asked for besides the guest and the devices."""
    parser.add_argument(
        "--strategy",
        metavar="NAME[:key=value,…]",
        help="strategy for these devices; default: the configuration's, else identity",
    )
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
    parser.add_argument(
        "--unmanaged",
        action="store_true",
        help="the devices are bound to vfio-pci already and stay so; libvirt does not rebind them",
    )
    parser.add_argument(
        "--vsmmu",
        metavar="KEY=VALUE[,…]",
        default="",
        help="properties of new vSMMUs: ats, ril, cmdqv (on, off), ssidsize (0 to 20), oas (44, "
        "48); what is left out is as the physical SMMU has it",
    )
    parser.add_argument(
        "--spare-ports",
        type=int,
        default=0,
        metavar="N",
        help="have N free root ports behind each vSMMU, for devices that are plugged in while the "
        "guest runs; default: 0",
    )
    parser.add_argument(
        "--spare-memory",
        type=int,
        default=64,
        metavar="MIB",
        help="with --spare-ports: prefetchable memory that QEMU reserves for each port, as much as "
        "the largest such BAR that is ever to be plugged in; default: 64",
    )
    parser.add_argument(
        "--fdgroup",
        metavar="NAME",
        help="the program that starts the guest opens /dev/iommu itself and hands it over as the "
        "group NAME",
    )


def request_of(
    args: argparse.Namespace, domain: str, named: Choice | None, scope: str
) -> AttachRequest:
    """Return the request that the arguments make, for the devices in ``args.device``.

    :raise InputError: for a device that is no PCI address.
    :raise UsageError: for a property of a vSMMU that is not KEY=VALUE.
    """
    from vmm_msi.provision import AttachRequest, BinderKind, Scope

    return AttachRequest(
        domain=domain,
        devices=tuple(PciAddress.parse(text) for text in args.device),
        named=named,
        binder=None if args.backend is None else BinderKind(args.backend),
        allow_faults=args.allow_faults,
        scope=Scope(scope),
        managed=not args.unmanaged,
        driver=_properties(args.vsmmu),
        spare_ports=args.spare_ports,
        spare_memory=args.spare_memory,
        fdgroup=args.fdgroup,
    )


def run(args: argparse.Namespace) -> int:
    """Attach."""
    named = Choice.parse(args.strategy) if args.strategy is not None else None
    request = request_of(args, args.domain, named, args.scope)
    settings = load_config(args)
    plugins = load_plugins(args, settings, [named] if named is not None else [])
    check_uris(args, [args.connect])
    host = load_host(args)
    from vmm_msi import provision
    from vmm_msi.libvirt_driver import connect

    with connect(args.connect, readonly=is_preview(args)) as connection:
        if is_preview(args):
            preview(args, provision.plan_attach(connection, plugins, settings, host, request))
            return 0
        change = provision.attach(connection, plugins, settings, host, request)
    print_change(args, change, f"attached {', '.join(map(str, request.devices))}")
    return 0


def _properties(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    found = {key: value for key, equals, value in pairs if key and equals}
    if len(found) != len(pairs):
        raise UsageError(f"--vsmmu {text}: not of the form KEY=VALUE[,…] with each key once")
    return found
