"""``vmm-msi explain``: explain faults and error messages in logs."""

from __future__ import annotations

import sys
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
    print_json,
    print_page,
    print_text,
)
from vmm_msi.cli.domain_options import add_connection, add_domain
from vmm_msi.errors import TopologyError, UsageError
from vmm_msi.terminal import print_error

if TYPE_CHECKING:
    import argparse

    from vmm_msi.types import HostTopology

#: Exit code if nothing was recognised.
EXIT_UNKNOWN = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "text",
        metavar="TEXT",
        nargs="*",
        help="log line, or an SMMU event as four words 0x…; default: standard input",
    )
    add_host(parser, "host that the text comes from; default: this machine if it has an SMMU")
    add_granule(parser)
    add_domain(parser, "affected guest")
    add_connection(parser)
    parser.add_argument(
        "--in-guest",
        action="store_true",
        help="TEXT comes from the guest's own log, or is an event that the guest received (a "
        "vEVENT): its StreamIDs and PCI addresses are the guest's",
    )
    add_format(parser, "html", "markdown", "csv")
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Explain the text and print the explanations."""
    from vmm_msi.library.explanation import explain_lines
    from vmm_msi.library.guests import read_guest

    text = _text(args)
    settings = load_config(args)
    plugins = load_plugins(args, settings)
    notes: list[str] = []
    host = _host(args, notes)
    xml = None if args.domain is None else read_guest(args.domain, args.connect, running=True)
    explanation = explain_lines(
        text,
        host,
        xml,
        in_guest=args.in_guest,
        plugins=plugins,
        settings=settings,
        notes=notes,
    )
    if args.format == "json":
        print_json(explanation.to_json())
    elif args.format != "text":
        from vmm_msi.cli.provenance import provenance
        from vmm_msi.report.explain_page import to_page

        facts = {"host": host and host.source, "guest": args.domain}
        known = {name: fact for name, fact in facts.items() if fact}
        page = to_page(explanation.explained, known | provenance(args))
        print_page(page, args.format)
    else:
        print_text(explanation.to_lines)
    return 0 if explanation.is_recognised else EXIT_UNKNOWN


def _text(args: argparse.Namespace) -> str:
    from vmm_msi.explain import log_lines

    if args.text:
        # Words without quotes are one line, as the four words of an event are.
        quoted = any(len(text.split()) > 1 for text in args.text)
        text = ("\n" if quoted else " ").join(args.text)
        return log_lines.decode(text.encode("utf-8", "surrogateescape"), "the command line")
    if args.domain == "-":
        raise UsageError("--domain -: standard input has the text; use a file, or pass TEXT")
    if sys.stdin is None:
        raise UsageError(
            "reading standard input: it is closed; use TEXT, or a log: dmesg | vmm-msi explain"
        )
    if sys.stdin.isatty():
        print_error("reading from the terminal; press Ctrl-D to finish")
    return log_lines.decode(sys.stdin.buffer.read(log_lines.MAX_BYTES + 1), "standard input")


def _host(args: argparse.Namespace, notes: list[str]) -> HostTopology | None:
    """Return the host of ``--host``, otherwise this machine if it is a host."""
    from vmm_msi.domxml.document import is_document

    if args.host is not None:
        return load_host(args)
    try:
        if args.domain is not None and not is_document(args.domain):
            check_uris(args, [args.connect])
        host = load_host(args)
    except (UsageError, TopologyError) as error:
        notes.append(f"host unknown: {error}")
        return None
    notes.append(
        f"assuming that the text comes from this machine ({host.source}); use --host for another"
    )
    return host
