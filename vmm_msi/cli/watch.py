"""``vmm-msi watch``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from vmm_msi.cli.common import (
    add_config,
    add_granule,
    add_host,
    check_uris,
    load_host,
    load_plugins,
)
from vmm_msi.cli.domain_options import DEFAULT_URI
from vmm_msi.errors import UsageError
from vmm_msi.terminal import print_document, print_error
from vmm_msi.types import Granule

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "-c",
        "--connect",
        metavar="URI",
        action="append",
        help=f"libvirt connection; repeatable; default: $LIBVIRT_DEFAULT_URI, else {DEFAULT_URI}",
    )
    add_host(parser, "the host; default: this machine")
    add_granule(parser)
    parser.add_argument(
        "--metrics",
        metavar="ADDRESS",
        help="serve metrics for Prometheus at ADDRESS:PORT, at :PORT of the loopback address, or "
        "on the socket unix:PATH; default: no metrics",
    )
    parser.add_argument(
        "--format",
        choices=("text", "json"),
        help="format of the log: text for people (default on a terminal) or JSON for programs "
        "(otherwise the default), an object per line",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--once",
        action="store_true",
        help="reconcile every guest once, print the changes, and exit",
    )
    mode.add_argument(
        "--print-unit",
        action="store_true",
        help="print a systemd unit for this command line, and exit",
    )
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Run the service, reconcile once, or print the unit."""
    from vmm_msi.watch.metrics import ListenAddress

    uris = _uris(args)
    metrics = None if args.metrics is None else ListenAddress.parse(args.metrics)
    if metrics is not None and args.once:
        raise UsageError(
            f"--metrics {metrics}: --once exits before anything reads them; omit one of the two"
        )
    if args.print_unit:
        _print_unit(args, uris)
        return 0
    from vmm_msi.config import load_config
    from vmm_msi.host.msi_bindings import MsiBindingsFile
    from vmm_msi.watch import service, unit
    from vmm_msi.watch.binder import SimBinder
    from vmm_msi.watch.service_log import logging_to
    from vmm_msi.watch.systemd_notify import Notifier, passed_descriptor

    host = load_host(args)

    def load() -> SimBinder:
        # It logs which file it reads.
        settings = load_config(args.config)
        return SimBinder(load_plugins(args, settings), settings, host)

    file = MsiBindingsFile(descriptor=passed_descriptor(os.environ, unit.BINDINGS_NAME))
    options = service.ServiceOptions(uris, load, metrics, file)
    stream = sys.stdout if args.once else sys.stderr
    as_json = args.format == "json" or (args.format is None and not stream.isatty())
    with logging_to(stream, as_json=as_json):
        if args.once:
            service.reconcile_once(options)
        else:
            service.Service(options, Notifier(os.environ)).run()
    return 0


def _uris(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the URIs of the connections, without duplicates.

    :raise UsageError: when a URI is of another machine and the command line names no host.
    """
    uris = args.connect or [os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI]
    check_uris(args, uris)
    return tuple(dict.fromkeys(uris))


def _print_unit(args: argparse.Namespace, uris: tuple[str, ...]) -> None:
    from pathlib import Path

    from vmm_msi.host.msi_bindings import PATH
    from vmm_msi.qemuhook import imported_code
    from vmm_msi.watch import unit

    command = [*_program(), "watch"]
    for uri in uris:
        command += ["-c", uri]
    granule = args.granule
    if granule is None and args.host is None:
        # The firmware tables that the unit passes do not have it.
        granule = str(Granule(os.sysconf("SC_PAGE_SIZE")))
    values = {"granule": granule, "metrics": args.metrics, "format": args.format}
    for option, value in values.items():
        if value is not None:
            command += [f"--{option}", value]
    for name in args.disable_plugin:
        command += ["--disable-plugin", name]
    if args.config is not None:
        command += ["--config", str(args.config.absolute())]
    for host in args.host or ():
        command += ["--host", host if isinstance(host, str) else str(host.absolute())]
    tables = [] if args.host is not None else _tables()
    print_document(unit.render(command, tables, bindings=PATH.exists()))
    imports = imported_code.imports_of(sys.executable)
    weak = imported_code.weakness(Path(command[0]), sys.executable, imports)
    if weak is not None:
        print_error(
            f"note: the service may change guests, and {weak}; install vmm-msi where only root may "
            "write"
        )


def _program() -> list[str]:
    """Return the command line that starts this program."""
    import sysconfig
    from pathlib import Path

    script = Path(sysconfig.get_path("scripts"), "vmm-msi")
    return [str(script)] if script.exists() else [sys.executable, "-m", "vmm_msi"]


def _tables() -> list[Path]:
    """Return the paths of this machine's device tree, or else of its ACPI tables."""
    from vmm_msi.host.live import ACPI_TABLES, DEVICE_TREE

    acpi = [ACPI_TABLES / name for name in ("IORT", "APIC")]
    return [DEVICE_TREE] if DEVICE_TREE.exists() and not acpi[0].exists() else acpi
