"""``vmm-msi record``: write the MSIs of a running guest to a file that replay reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.cli.common import (
    add_granule,
    add_host,
    add_output,
    check_uris,
    load_host,
    output_path,
)
from vmm_msi.cli.domain_options import add_connection, add_target, in_libvirt
from vmm_msi.errors import InputError, UnreadableError, UsageError
from vmm_msi.quantity import quantity
from vmm_msi.terminal import print_error

if TYPE_CHECKING:
    import argparse

    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.recording import Releases


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_target(parser)
    add_output(parser, "the recording", required=True)
    add_connection(parser)
    add_host(parser, "this machine, if its own firmware tables do not describe it")
    add_granule(parser)
    parser.add_argument(
        "--guest-log",
        type=Path,
        metavar="FILE",
        help="the guest's kernel log, as its dmesg prints it, which has the faults of its stage 1",
    )
    parser.add_argument(
        "--no-rmr",
        action="store_true",
        help="the guest's kernel does not map the RMRs of its IORT 1:1; the host cannot detect it",
    )


def run(args: argparse.Namespace) -> int:
    """Record a running guest."""
    from vmm_msi.host.files.folder import this_machine
    from vmm_msi.host.files.kernel_log import kernel_log
    from vmm_msi.host.msi_bindings import MsiBindingsFile, takes_bindings
    from vmm_msi.output import check_target, write_output
    from vmm_msi.recording import recording_json
    from vmm_msi.recording.measure import read_interrupts
    from vmm_msi.recording.recorder import Observations, record_guest

    target = output_path(args)
    check_target(target, force=args.force)
    check_uris(args, [args.connect])
    if os.geteuid() != 0:
        raise UsageError(
            "recording requires root, because only root can read the kernel's log, the devices' "
            "MSI-X tables and the firmware tables; use sudo vmm-msi record"
        )
    log = None if args.guest_log is None else _guest_log(args.guest_log)
    with in_libvirt(args.domain):
        xml, releases = _query_libvirt(args)
    host = load_host(args)
    unread: list[str] = []
    lines: list[str] = []
    recent: list[str] = []
    try:
        lines = kernel_log(this_machine())
        recent = kernel_log(this_machine(), since_cleared=True, since_us=_start_us(xml, unread))
    except UnreadableError as failure:
        unread.append(f"{failure.path}: {failure.reason}")
    interrupts = ""
    try:
        interrupts = read_interrupts()
    except UnreadableError as failure:
        unread.append(f"{failure.path}: {failure.reason}")
    bindings = None
    if takes_bindings(host):
        try:
            bindings = MsiBindingsFile().read()
        except UnreadableError as failure:
            unread.append(f"{failure.path}: {failure.reason}")
    observations = Observations(
        interrupts,
        lines,
        recent,
        log,
        rmr=not args.no_rmr,
        bindings=bindings,
        unread=tuple(unread),
    )
    recording = record_guest(xml, host, releases, observations)
    data = recording_json.encode(recording)
    write_output(target, data, force=args.force)
    counts = {
        "device": len(recording.devices),
        "slot": len(recording.slots),
        "interrupt": sum(device.interrupts for device in recording.devices),
        "event": len(recording.events),
    }
    summary = ", ".join(quantity(number, noun) for noun, number in counts.items())
    print_error(f"wrote {target or 'standard output'}: {summary}")
    for text in recording.unread:
        print_error(f"not read: {text}")
    return 0


def _start_us(xml: DomainXml, unread: list[str]) -> int:
    """Return when the guest started, on the clock of the kernel's log; 0 if that is unknown.

    :param unread: receives the reason, which does not identify the guest.
    """
    from vmm_msi.recording.measure import start_time_us

    try:
        return start_time_us(xml.uuid or "")
    except UnreadableError as failure:
        unread.append(f"{failure.path}: the guest's start; events of earlier runs count too")
        return 0


def _guest_log(path: Path) -> str:
    from vmm_msi.explain import log_lines

    try:
        with path.open("rb") as file:
            return log_lines.decode(file.read(log_lines.MAX_BYTES + 1), str(path))
    except OSError as failure:
        raise InputError(f"reading the guest's log {path}: {failure.strerror}") from failure


def _query_libvirt(args: argparse.Namespace) -> tuple[DomainXml, Releases]:
    """Return the live XML of the guest and the releases of the software, from libvirt."""
    from vmm_msi import __version__
    from vmm_msi.doctor.software import query_libvirt
    from vmm_msi.libvirt_driver import connect
    from vmm_msi.recording import Releases

    with connect(args.connect, readonly=True) as connection:
        if not connection.is_active(args.domain):
            raise UsageError(
                f"recording {args.domain}: the guest does not run; start it and let its devices "
                "work first"
            )
        xml = connection.domain_xml(args.domain, inactive=False)
        software = query_libvirt(connection)
    libvirt, qemu = (
        "" if version is None else str(version) for version in (software.libvirt, software.qemu)
    )
    return xml, Releases(__version__, os.uname().release, libvirt, qemu)
