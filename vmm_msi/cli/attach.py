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
    load_plugins,
    load_sources,
)
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
from vmm_msi.config import Choice

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
    """Add the options of an attach request besides the guest and the devices."""
    parser.add_argument(
        "--strategy",
        metavar="NAME[:key=value,…]",
        help="strategy for these devices; default: the configuration's, else identity",
    )
    parser.add_argument(
        "--backend",
        choices=("qemu", "sim"),
        help="who binds the doorbells: qemu (QEMU and the kernel, which binds the other strategies "
        "where it has guest MSI bindings; the default on a QEMU connection) or sim (the simulator: "
        "real XML, simulated binding)",
    )
    parser.add_argument(
        "--allow-faults",
        action="store_true",
        help="attach even if vmm-msi doctor reports errors for the result, such as MSIs that do "
        "not arrive in the simulator; they become notes",
    )
    parser.add_argument(
        "--unmanaged",
        action="store_true",
        help="the devices are bound to vfio-pci and stay bound; libvirt does not rebind them",
    )
    parser.add_argument(
        "--vsmmu",
        metavar="KEY=VALUE[,…]",
        default="",
        help="properties of new vSMMUs: ats, ril, cmdqv (on, off), ssidsize (0 to 20), oas (44, "
        "48); the others are those of the physical SMMU",
    )
    parser.add_argument(
        "--spare-ports",
        type=int,
        default=0,
        metavar="N",
        help="keep N free root ports behind each vSMMU, for hotplug into the running guest; "
        "default: 0",
    )
    parser.add_argument(
        "--spare-memory",
        type=int,
        default=64,
        metavar="MIB",
        help="with --spare-ports: prefetchable memory that QEMU reserves for each port, at least "
        "the largest prefetchable BAR of a device to hotplug; default: 64",
    )
    parser.add_argument(
        "--fdgroup",
        metavar="NAME",
        help="use the /dev/iommu that the program which starts the guest opens and passes to "
        "libvirt as the FD group NAME",
    )


def request_of(
    args: argparse.Namespace, domain: str, named: Choice | None, scope: str
) -> AttachRequest:
    """Return the attach request of the arguments, for the devices in ``args.device``.

    :raise InputError: for a device that is not a PCI address.
    :raise UsageError: for properties of a vSMMU that are not KEY=VALUE.
    """
    from vmm_msi.provision import AttachRequest

    return AttachRequest(
        domain=domain,
        devices=args.device,
        strategy=named,
        binder=args.backend,
        allow_faults=args.allow_faults,
        scope=scope,
        managed=not args.unmanaged,
        driver=args.vsmmu,
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
    from vmm_msi.library import changes

    with in_libvirt(args.domain):
        host = load_sources(args)
        with connected(args) as connection:
            if is_preview(args):
                change = changes.plan_attach(connection, plugins, settings, host, request)
                preview(args, change, connection)
                return 0
            change = changes.attach(connection, plugins, settings, host, request)
    print_change(args, change)
    return 0
