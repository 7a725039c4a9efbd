"""``vmm-msi status``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.cli.common import (
    add_format,
    add_granule,
    add_host,
    check_uris,
    load_host,
    print_json,
)
from vmm_msi.cli.domain_options import DOMAIN, add_connection
from vmm_msi.errors import TopologyError, UnreadableError, UsageError, VmmMsiError
from vmm_msi.terminal import print_lines

if TYPE_CHECKING:
    import argparse

    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.metadata import DomainRecord
    from vmm_msi.provision import Status
    from vmm_msi.recording.measure import Measured
    from vmm_msi.report.status import GuestStatus
    from vmm_msi.types import HostTopology, PciAddress


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "domain",
        metavar="DOMAIN",
        nargs="?",
        help=f"guest: {DOMAIN}; default: list all guests of libvirt",
    )
    add_connection(parser)
    parser.add_argument(
        "--scope",
        choices=("config", "live"),
        default="config",
        help="what to show, in virsh's words: config (the definition, for the next start; the "
        "default) or live (the running guest)",
    )
    add_host(parser, "this machine, if its own firmware tables do not describe it")
    add_granule(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Show the devices of one guest, or list all guests."""
    from vmm_msi.report import status as report

    if args.domain is None:
        guests, notes = _all(args)
        if args.format == "json":
            documents = [report.to_json(guest) for guest in guests]
            print_json({"schema": 1, "domains": documents, "notes": notes})
        else:
            print_lines(report.list_lines(guests, notes))
        return 0
    guest = _one(args)
    if args.format == "json":
        print_json({"schema": 1, **report.to_json(guest)})
    else:
        print_lines(report.lines_of(guest))
    return 0


def _all(args: argparse.Namespace) -> tuple[list[GuestStatus], list[str]]:
    """Return the status of every guest, and a note for each that cannot be read."""
    from vmm_msi import provision
    from vmm_msi.libvirt_driver import connect
    from vmm_msi.report.status import GuestStatus

    guests = []
    notes = []
    with connect(args.connect, readonly=True) as connection:
        for name in connection.names():
            try:
                state = connection.state(name)
                xml = state.running or state.definition
                record = provision.status_of(xml).record
            except VmmMsiError as error:
                # The others are shown: its record was edited by hand, or it is gone meanwhile.
                notes.append(str(error))
                continue
            running = state.running is not None
            guests.append(GuestStatus(name, running, record, _others(xml, record)))
    return guests, notes


def _one(args: argparse.Namespace) -> GuestStatus:
    """Return the status of a guest, with measurements if it runs here."""
    from vmm_msi import provision
    from vmm_msi.domxml.document import is_document, named_in_libvirt, read_document
    from vmm_msi.libvirt_driver import connect
    from vmm_msi.report.status import GuestStatus

    if is_document(args.domain):
        xml = read_document(args.domain)
        status = provision.status_of(xml)
        others = _others(xml, status.record)
        return GuestStatus(status.name, None, status.record, others, None, _gone(args, status))
    with named_in_libvirt(args.domain), connect(args.connect, readonly=True) as connection:
        status = provision.status(connection, args.domain, provision.Scope(args.scope))
        state = connection.state(args.domain)
    notes = _gone(args, status)
    measured = None
    if status.record.devices and state.running is not None:
        measured, unread = _measure(args, state.running)
        notes += unread
    elif status.record.devices:
        notes.append("the guest is off: its MSIs are as the simulator predicted at attach")
    xml = state.running if args.scope == "live" and state.running else state.definition
    others = _others(xml, status.record)
    running = state.running is not None
    return GuestStatus(status.name, running, status.record, others, measured, notes)


def _others(xml: DomainXml, record: DomainRecord) -> list[PciAddress]:
    """Return the PCI devices of a guest that vmm-msi did not attach."""
    return [hostdev.host for hostdev in xml.assigned() if record.device(hostdev.host) is None]


def _gone(args: argparse.Namespace, status: Status) -> list[str]:
    """Return a note for each part that was removed from the guest."""
    where = "the running guest" if args.scope == "live" else "the definition"
    return [
        f"{part} is missing from {where}: another program removed it; detach the device and attach "
        "it again"
        for part in status.gone
    ]


def _measure(
    args: argparse.Namespace, xml: DomainXml
) -> tuple[dict[PciAddress, Measured] | None, list[str]]:
    """Measure the devices of a running guest; return None if it runs elsewhere.

    :return: and notes about what was not measured, and why.
    """
    from vmm_msi.explain.log_context import LogContext
    from vmm_msi.recording.measure import measure, read_interrupts

    if args.connect.partition(":")[0].partition("+")[0] != "qemu":
        return None, ["not measured: the guests of this connection do not run in QEMU"]
    try:
        check_uris(args, [args.connect])
    except UsageError:
        return None, [f"not measured: {args.connect} is another machine; run vmm-msi there"]
    notes: list[str] = []
    host: HostTopology | None = None
    interrupts: str | None = None
    log: list[str] | None = None
    try:
        interrupts = read_interrupts()
    except UnreadableError as error:
        notes.append(f"interrupts not measured: {error}")
    try:
        host = load_host(args)
        log = _log_since(xml.name)
    except (UsageError, TopologyError, UnreadableError) as error:
        notes.append(f"faults not measured: {error}")
    addresses = [hostdev.host for hostdev in xml.hostdevs()]
    context = LogContext(host, None, xml)
    measured, unread = measure(addresses, interrupts, log, context)
    notes += [f"MSI address not measured: {reason}" for reason in unread]
    return measured, notes


def _log_since(guest: str) -> list[str]:
    """Return the kernel's log since the guest started.

    :raise UnreadableError: when it or the guest's process cannot be read.
    """
    from vmm_msi.host.files.folder import this_machine
    from vmm_msi.host.files.kernel_log import kernel_log
    from vmm_msi.recording.measure import start_time_us

    return kernel_log(this_machine(), since_us=start_time_us(guest))
