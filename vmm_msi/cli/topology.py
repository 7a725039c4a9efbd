"""``vmm-msi topology``: show or capture the description of a host."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.cli import topology_capture
from vmm_msi.cli.common import (
    add_format,
    add_granule,
    add_hosts,
    print_json,
    print_page,
    print_text,
    read_described_host,
)
from vmm_msi.host.sources import FORMS
from vmm_msi.terminal import print_document

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``vmm-msi topology``."""
    actions = parser.add_subparsers(
        title="subcommands", dest="action", metavar="SUBCOMMAND", required=True
    )
    summary = "show a host: its SMMUs, ITSes, routes, PCI functions and IOMMU groups"
    show = actions.add_parser("show", help=summary, description=summary, allow_abbrev=False)
    add_hosts(
        show,
        f"{FORMS}; or a libvirt URI. Several are sources about one host, of which the first wins "
        "where they disagree; default: this machine",
    )
    add_format(show, "html", "markdown", "csv", "svg", "toml")
    add_granule(show)
    summary = "write the description of a host to one file, for use on another machine"
    topology_capture.configure(
        actions.add_parser("capture", help=summary, description=summary, allow_abbrev=False)
    )


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    if args.action == "capture":
        return topology_capture.run(args)
    host = read_described_host(args)
    if args.format == "json":
        print_json(host.to_json())
        return 0
    if args.format == "toml":
        from vmm_msi.report import scenario

        print_document(scenario.host_text(host.topology))
        return 0
    if args.format == "svg":
        from vmm_msi.report.host_map import host_svg

        print_document(host_svg(host.topology))
        return 0
    several = len(host.sources) > 1
    if args.format != "text":
        from vmm_msi.cli.provenance import provenance
        from vmm_msi.report.topology_page import to_page

        differences = host.disagreements if several else None
        print_page(to_page(host.topology, differences, provenance(args)), args.format)
        return 0
    from vmm_msi.report import system, topology

    print_text(partial(topology.to_lines, host.topology))
    if several:
        print_text(partial(system.disagreement_lines, host.disagreements))
    return 0
