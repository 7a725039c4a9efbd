"""``vmm-msi doctor``: check a host, and optionally a guest, before it starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm_msi.cli.common import (
    HOST,
    add_config,
    add_format,
    add_granule,
    add_hosts,
    add_releases,
    print_json,
    read_described_host,
    releases,
)
from vmm_msi.cli.domain_options import add_domain
from vmm_msi.errors import UsageError
from vmm_msi.quantity import quantity
from vmm_msi.terminal import print_lines
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    import argparse

    from vmm_msi.doctor.case import Case
    from vmm_msi.host.sources import HostSources

#: Exit codes for findings; errors of the command itself have those of errors.py.
EXIT_ERRORS = 8
EXIT_WARNINGS = 9


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_hosts(
        parser,
        f"host to check, by default this machine: {HOST}; several HOSTs are sources about one host",
    )
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="host PCI address of a device to assign, such as 0000:01:00.0; may be repeated; "
        "default: the devices of --domain, or all assignable devices",
    )
    add_domain(parser, "guest to check")
    parser.add_argument(
        "-c",
        "--connect",
        metavar="URI",
        help="libvirt connection to query for its release, the domain and assigned devices; "
        "default with the name of a domain: $LIBVIRT_DEFAULT_URI, or qemu:///system",
    )
    add_releases(parser, "to check", "that of --connect, or of a capture")
    parser.add_argument(
        "--strategy",
        metavar="NAME[:key=value,…]",
        help="strategy to check; default with --device or --domain: the one in the configuration, "
        "or identity",
    )
    add_granule(parser)
    parser.add_argument(
        "--explain", metavar="ID", help="print the page about a finding without checking the host"
    )
    add_format(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Check the host and print the findings."""
    if args.explain is not None:
        print_lines(_page(args.explain).splitlines())
        return 0
    from vmm_msi.doctor.finding import Severity
    from vmm_msi.doctor.rules import examine
    from vmm_msi.report import doctor as report

    case = _case(args)
    findings = examine(case)
    if args.format == "json":
        print_json(report.to_json(case, args.domain, findings))
    else:
        print_lines(report.to_lines(_about(case, args.domain), findings))
    severities = {finding.severity for finding in findings}
    if Severity.ERROR in severities:
        return EXIT_ERRORS
    return EXIT_WARNINGS if severities & {Severity.WARNING, Severity.UNKNOWN} else 0


def _page(name: str) -> str:
    """Return the page about a finding.

    :raise UsageError: if no finding has this id.
    """
    from vmm_msi.doctor import pages

    try:
        return pages.page(name)
    except UsageError:
        from vmm_msi.explain.known_texts import texts

        for text in texts():
            if text.id == name:
                raise UsageError(
                    f"finding {name!r}: unknown id; it is a text of {text.program.value} that "
                    "vmm-msi explain recognises; pass the line to it"
                ) from None
        raise


def _about(case: Case, domain: str | None) -> str:
    from vmm_msi.doctor.devices import representatives

    count = len(case.devices)
    devices = quantity(count, "device")
    if count and not case.host.functions and case.devices == representatives(case.host):
        devices = f"no devices listed, {quantity(count, 'address range')}"
    guest = "" if domain is None else f", guest {domain}"
    files = "" if case.tree is not None else ", kernel not checked"
    return f"{case.host.source}{guest}, {devices}{files}"


def _case(args: argparse.Namespace) -> Case:
    from vmm_msi.doctor.case_reader import Selection, read_case

    devices = [PciAddress.parse(text) for text in args.device]
    named = (args.domain, args.connect, args.strategy, args.config, args.libvirt, args.qemu)
    if not devices and named.count(None) == len(named):
        return read_case(_sources(args))
    from vmm_msi.cli.common import load_config, load_plugins
    from vmm_msi.config import Choice
    from vmm_msi.plugins.hookspecs import PluginKind

    choice = None if args.strategy is None else Choice.parse(args.strategy)
    settings = load_config(args)
    plugins = load_plugins(args, settings, [] if choice is None else [choice])
    if choice is not None:
        plugins.info(choice.strategy, PluginKind.STRATEGY)
    selection = Selection(
        devices, args.domain, _uri(args), choice, plugins, settings, *releases(args)
    )
    return read_case(_sources(args), selection)


def _uri(args: argparse.Namespace) -> str | None:
    """Return the libvirt to query; None if none is needed.

    :raise UsageError: if it is on another machine but the host is this one.
    """
    from vmm_msi.cli.domain_options import DEFAULT_URI
    from vmm_msi.domxml.document import is_document

    uri: str | None = args.connect
    if uri is None and args.domain is not None and not is_document(args.domain):
        uri = os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI
    _, remote, path = (uri or "").partition("://")
    if remote and not path.startswith("/") and not args.host and args.root is None:
        raise UsageError(
            f"checking {uri}: it is on another machine; add a HOST that describes that machine"
        )
    return uri


def _sources(args: argparse.Namespace) -> HostSources:
    """Read the host's sources.

    :raise UsageError: for files of two hosts, or if this machine is not an Arm host.
    """
    read = read_described_host(args)
    if len(read.trees) > 1:
        first, second, *_more = read.trees
        raise UsageError(
            f"reading {second.source}: {first.source} already has the host's files; use one of them"
        )
    return read
