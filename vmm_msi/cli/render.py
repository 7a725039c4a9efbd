"""``vmm-msi render``: edit XML from standard input as ``attach`` or ``detach`` does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vmm_msi.cli.attach import add_attach_options, request_of
from vmm_msi.cli.common import (
    add_config,
    add_format,
    add_granule,
    add_host,
    add_releases,
    load_config,
    load_plugins,
    load_sources,
    releases,
)
from vmm_msi.cli.detach import ALL
from vmm_msi.terminal import print_document, print_lines

if TYPE_CHECKING:
    import argparse

    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.support import Support
    from vmm_msi.host.files import HostTree
    from vmm_msi.provision import Change


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--device",
        action="append",
        required=True,
        metavar="ADDRESS",
        help="host PCI address, such as 0000:01:00.0; may be repeated; with --remove also "
        f"{ALL}, for every device that attach assigned",
    )
    parser.add_argument("--remove", action="store_true", help="remove the devices, as detach does")
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="also attach devices that the XML assigns already: move their elements behind the "
        "vSMMU; --remove removes them with it",
    )
    add_host(parser, "the host the guest will run on, by default this machine")
    add_granule(parser)
    add_attach_options(parser)
    add_releases(
        parser,
        "that the XML is for",
        "that of a capture, else one that supports everything that vmm-msi writes",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--dry-run", action="store_true", help="show the result as a table; print no XML"
    )
    group.add_argument(
        "--print-diff", action="store_true", help="print an XML diff instead of the XML"
    )
    add_format(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Read domain XML, edit it and print it, without libvirt."""
    from vmm_msi.domxml.document import read_editable, standard_input

    definition = read_editable(standard_input(), "standard input")
    change = _removing(args, definition) if args.remove else _attaching(args, definition)
    if args.dry_run:
        from vmm_msi.cli.domain_options import print_record

        what = "the result would be"
        print_record(args, definition.name, change.record, change.notes, what)
        return 0
    text = str(change.after)
    if args.print_diff:
        from vmm_msi.domxml.diff import unified

        text = unified(str(change.before), text, definition.name)
    print_document(text)
    print_lines((f"note: {note}" for note in change.notes), sys.stderr)
    return 0


def _attaching(args: argparse.Namespace, definition: DomainXml) -> Change:
    from vmm_msi.config import Choice
    from vmm_msi.provision import definition_file

    named = Choice.parse(args.strategy) if args.strategy is not None else None
    request = request_of(args, definition.name, named, "config")
    settings = load_config(args)
    plugins = load_plugins(args, settings, [named] if named is not None else [])
    sources = load_sources(args)
    support = _support(args, sources.tree)
    return definition_file.plan_attach(
        definition, support, plugins, settings, sources, request, take_over=args.take_over
    )


def _removing(args: argparse.Namespace, definition: DomainXml) -> Change:
    from vmm_msi.domxml.guest_state import GuestState
    from vmm_msi.provision import DetachRequest, planner
    from vmm_msi.types import PciAddress

    devices = () if args.device == [ALL] else tuple(map(PciAddress.parse, args.device))
    return planner.plan_detach(GuestState(definition), DetachRequest(definition.name, devices))


def _support(args: argparse.Namespace, tree: HostTree | None) -> Support:
    """Return the selected releases; by default those of a capture, else the newest."""
    from vmm_msi.doctor.case import Software
    from vmm_msi.doctor.facts import read_software
    from vmm_msi.domxml.support import Support, newest

    known, recorded = newest(), Software() if tree is None else read_software(tree)
    libvirt, qemu = releases(args)
    return Support(
        libvirt or recorded.libvirt or known.libvirt, qemu or recorded.qemu or known.qemu
    )
