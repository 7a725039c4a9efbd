"""``vmm-msi doctor``: check a host, and optionally a guest, before it starts."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.cli.common import (
    HOST,
    add_config,
    add_format,
    add_granule,
    add_hosts,
    add_releases,
    print_json,
    print_page,
    print_text,
    read_described_host,
    releases,
)
from vmm_msi.cli.domain_options import add_domain
from vmm_msi.errors import UsageError
from vmm_msi.terminal import print_lines
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from vmm_msi.doctor.ignored import Ignored
    from vmm_msi.library.examination import Examination
    from vmm_msi.plugins.manager import PluginManager

#: Exit codes for findings; errors of the command itself have those of errors.py.
EXIT_ERRORS = 8
EXIT_WARNINGS = 9
#: What --fail-on names.
LEVELS = ("error", "warning", "note", "unknown")


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
    parser.add_argument(
        "--fail-on",
        action="append",
        choices=LEVELS,
        metavar="LEVEL",
        help="what sets the exit code besides errors: warning, note (and warnings), unknown (a "
        "check that could not run), or error (nothing else); may be repeated; default: warning "
        "and unknown",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="ID[:ADDRESS]",
        help="ignore a finding, or the finding about one device; it is only counted; may be "
        "repeated",
    )
    add_format(parser, "html", "markdown", "csv")
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Check the host and print the findings."""
    if args.explain is not None:
        lines = _page(args, args.explain).splitlines()
        if sys.stdout.isatty():
            print_text(partial(_page_lines, lines))
        else:
            print_lines(lines)
        return 0
    ignored = [_ignored(args, text) for text in args.ignore]
    examination = _examine(args).without(ignored)
    if args.format == "json":
        print_json(examination.to_json())
    elif args.format != "text":
        from vmm_msi.cli.provenance import provenance
        from vmm_msi.report.doctor_page import to_page

        page = to_page(
            examination.case,
            examination.domain,
            examination.findings,
            provenance(args),
            examination.ignored,
        )
        print_page(page, args.format)
    else:
        print_text(examination.to_lines)
    if examination.has_errors:
        return EXIT_ERRORS
    levels = set(args.fail_on or ("warning", "unknown"))
    if "note" in levels:
        levels.add("warning")
    failing = any(str(finding.severity) in levels for finding in examination.findings)
    return EXIT_WARNINGS if failing else 0


def _ignored(args: argparse.Namespace, text: str) -> Ignored:
    """Return the finding that ``--ignore`` names.

    :raise UsageError: if no finding has this id, or for a device that is not a PCI address.
    """
    from vmm_msi.doctor.ignored import Ignored

    ignored = Ignored.parse(text)
    _page(args, ignored.id)
    return ignored


def _rules(args: argparse.Namespace) -> PluginManager:
    """Load the plugins, for their doctor rules."""
    from vmm_msi.cli.common import enabled_plugins, load_config

    return enabled_plugins(args, load_config(args))


def _page_lines(lines: Iterable[str], width: int) -> Iterator[str]:
    """Yield the lines of a page with its paragraphs in the width of the terminal."""
    from vmm_msi.report.columns import prose

    for line in _paragraphs(lines):
        yield from prose(line, width, below="  " if line.startswith(("- ", "* ")) else "")


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Yield each paragraph of Markdown as one line; headings, tables and code stay as they are."""
    paragraph, in_code = "", False
    for line in lines:
        in_code ^= line.startswith("```")
        alone = in_code or not line or line.startswith(("#", "|", "    ", "```"))
        if paragraph and (alone or line.startswith(("- ", "* "))):
            yield paragraph
            paragraph = ""
        if alone:
            yield line
        else:
            paragraph = f"{paragraph} {line.strip()}" if paragraph else line
    if paragraph:
        yield paragraph


def _page(args: argparse.Namespace, name: str) -> str:
    """Return the page about a finding.

    :raise UsageError: if no finding has this id.
    """
    from vmm_msi.doctor import pages
    from vmm_msi.doctor.plugin_rules import plugin_page
    from vmm_msi.library.installed import others_installed

    try:
        return pages.page(name)
    except UsageError:
        page = plugin_page(_rules(args), name) if others_installed() else None
        if page is not None:
            return page
        from vmm_msi.explain.known_texts import texts

        for text in texts():
            if text.id == name:
                raise UsageError(
                    f"finding {name!r}: unknown id; it is a text of {text.program.value} that "
                    "vmm-msi explain recognises; pass the line to it"
                ) from None
        raise


def _examine(args: argparse.Namespace) -> Examination:
    from vmm_msi.doctor.case_reader import Selection
    from vmm_msi.library.examination import examine_selection

    devices = [PciAddress.parse(text) for text in args.device]
    named = (args.domain, args.connect, args.strategy, args.config, args.libvirt, args.qemu)
    if not devices and named.count(None) == len(named):
        from vmm_msi.library.examination import rules_alone

        return examine_selection(read_described_host(args), rules_alone(lambda: _rules(args)))
    from vmm_msi.cli.common import load_config, load_plugins
    from vmm_msi.config import Choice

    choice = None if args.strategy is None else Choice.parse(args.strategy)
    settings = load_config(args)
    plugins = load_plugins(args, settings, [] if choice is None else [choice])
    selection = Selection(
        devices, args.domain, _uri(args), choice, plugins, settings, *releases(args)
    )
    return examine_selection(read_described_host(args), selection)


def _uri(args: argparse.Namespace) -> str | None:
    """Return the libvirt to query; None if none is needed.

    :raise UsageError: if it is on another machine but the host is this one.
    """
    from vmm_msi.arguments import is_other_machine
    from vmm_msi.cli.domain_options import DEFAULT_URI
    from vmm_msi.domxml.document import is_document

    uri: str | None = args.connect
    if uri is None and args.domain is not None and not is_document(args.domain):
        uri = os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI
    if uri is not None and is_other_machine(uri) and not args.host and args.root is None:
        raise UsageError(
            f"checking {uri}: it is on another machine; add a HOST that describes that machine"
        )
    return uri
