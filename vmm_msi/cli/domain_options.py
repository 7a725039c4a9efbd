"""Arguments, previews and reports of the commands that work on a libvirt domain."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.cli.common import print_text
from vmm_msi.errors import HypervisorError, UsageError
from vmm_msi.terminal import print_document, print_line, print_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TextIO

    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.metadata import DomainRecord
    from vmm_msi.library.changes import Change
    from vmm_msi.libvirt_driver import Connection

DEFAULT_URI = "qemu:///system"


def add_target(parser: argparse.ArgumentParser, devices: str = "", what: str = "") -> None:
    """Add DOMAIN and DEVICE.

    :param devices: argparse's ``nargs`` of DEVICE; empty adds none.
    """
    parser.add_argument("domain", metavar="DOMAIN", help="libvirt domain, by name or UUID")
    if devices:
        parser.add_argument("device", metavar="DEVICE", nargs=devices, help=what)


#: DOMAIN in ``--help`` where it may also be a document.
DOMAIN = (
    "a libvirt domain by name or UUID, a file with its XML by a name with a slash or .xml, or - "
    "for standard input"
)


class _Once(argparse.Action):
    """Refuse an option that is given twice, under either of its names."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} {values}: one guest is named already")
        setattr(namespace, self.dest, values)


def add_domain(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--domain``, which is also called ``--guest``."""
    parser.add_argument(
        "--domain",
        "--guest",
        action=_Once,
        metavar="DOMAIN",
        help=f"{what}: {DOMAIN}",
    )


@contextmanager
def in_libvirt(domain: str) -> Iterator[None]:
    """Look a guest up in libvirt during the ``with`` block, where a document cannot be used.

    :raise UsageError: for a document.
    :raise HypervisorError: the error of the block, see
        :func:`vmm_msi.domxml.document.named_in_libvirt`.
    """
    from vmm_msi.domxml.document import is_document, named_in_libvirt

    if is_document(domain):
        raise UsageError(
            f"DOMAIN {domain!r}: not the name of a libvirt domain; to edit XML in a file, use "
            "vmm-msi render"
        )
    with named_in_libvirt(domain):
        yield


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Add ``-c``."""
    parser.add_argument(
        "-c",
        "--connect",
        metavar="URI",
        default=os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI,
        help=f"libvirt connection; default: $LIBVIRT_DEFAULT_URI, else {DEFAULT_URI}",
    )


def add_scope(parser: argparse.ArgumentParser) -> None:
    """Add ``--scope``."""
    parser.add_argument(
        "--scope",
        choices=("config", "live", "both"),
        default="config",
        help="what to change, in virsh's words: config (the definition, for the next start; the "
        "default), live (the running guest) or both",
    )


def add_preview(parser: argparse.ArgumentParser) -> None:
    """Add the three options that show a change without making it."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--dry-run", action="store_true", help="show the result as a table; change nothing"
    )
    group.add_argument(
        "--print-diff", action="store_true", help="print the change as an XML diff; change nothing"
    )
    group.add_argument("--print-xml", action="store_true", help="print the new XML; change nothing")


def is_preview(args: argparse.Namespace) -> bool:
    """Return whether the arguments ask for a preview, for which a read-only connection suffices."""
    return bool(args.dry_run or args.print_diff or args.print_xml)


@contextmanager
def connected(args: argparse.Namespace) -> Iterator[Connection]:
    """Connect to libvirt for a change, or for a preview of one.

    Only a writable connection sees the passwords of a definition, so XML is printed from one where
    libvirt allows it.

    :raise HypervisorError: if libvirt cannot be reached, or not for a change.
    """
    from vmm_msi.libvirt_driver import connect

    with ExitStack() as stack:
        readonly = is_preview(args) and not args.print_xml
        try:
            connection = stack.enter_context(connect(args.connect, readonly=readonly))
        except HypervisorError:
            if not args.print_xml:
                raise
            connection = stack.enter_context(connect(args.connect, readonly=True))
        yield connection


def preview(args: argparse.Namespace, change: Change, connection: Connection) -> None:
    """Print a change in the form that the user selected, without making it."""
    if args.print_xml:
        print_document(str(change.after))
        if connection.readonly:
            _print_notes(_missing_passwords(change.after), sys.stderr)
    elif args.print_diff:
        from vmm_msi.domxml.diff import unified

        print_document(unified(str(change.before), str(change.after), change.old.name))
        _print_notes(change.notes, sys.stderr)
    else:
        print_change(args, change)


def _missing_passwords(xml: DomainXml) -> Iterator[str]:
    """Yield the elements whose passwords libvirt leaves out on a read-only connection."""
    for graphics in xml.root.iterfind("devices/graphics"):
        if graphics.get("type") in {"vnc", "spice"} and graphics.get("passwd") is None:
            yield (
                f"{xml.path(graphics)}: its password, if it has one, is missing, since libvirt "
                "shows it on writable connections only"
            )


def print_change(args: argparse.Namespace, change: Change) -> None:
    """Print the change of a libvirt domain and its devices afterwards."""
    notes = list(change.notes)
    if args.connect.startswith("test:///") and not is_preview(args):
        notes.append("libvirt's test driver runs in this process: the change is lost when it exits")
    print_record(args, change.old.name, change.record, notes, change.done)


def print_record(
    args: argparse.Namespace,
    name: str,
    record: DomainRecord,
    notes: Iterable[str] = (),
    what: str = "",
) -> None:
    """Print the devices and bindings in the record of a libvirt domain."""
    if args.format == "json":
        from vmm_msi.cli.common import print_json
        from vmm_msi.report.status import change_to_json

        print_json(change_to_json(name, record, notes, what))
        return
    if what:
        print_line(f"{name}: {what}")
    if not record.devices:
        print_line(f"{name}: no devices attached by vmm-msi")
    else:
        from vmm_msi.report.columns import columns
        from vmm_msi.report.status import address_notes, device_rows

        print_text(partial(columns, list(device_rows(record.devices, predicted=True))))
        notes = [*notes, *address_notes(record.devices)]
    _print_notes(notes, sys.stdout)


def _print_notes(notes: Iterable[str], out: TextIO) -> None:
    print_lines((f"note: {note}" for note in notes), out)
