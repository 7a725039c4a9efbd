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
    load_config,
    load_host,
    load_plugins,
)
from vmm_msi.cli.domain_options import DEFAULT_URI
from vmm_msi.errors import UsageError
from vmm_msi.terminal import print_document
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
        help="libvirt connection; may be repeated; default: $LIBVIRT_DEFAULT_URI, else "
        f"{DEFAULT_URI}",
    )
    add_host(parser, "the host, by default this machine")
    add_granule(parser)
    parser.add_argument(
        "--metrics",
        metavar="ADDRESS",
        help="answer Prometheus at ADDRESS:PORT, at :PORT of the loopback address, or on the "
        "socket unix:PATH; default: nowhere",
    )
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        help="how to write the log: text, the default on a terminal, or json, one object a line",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--once",
        action="store_true",
        help="look at every guest once, print what was done, and end",
    )
    mode.add_argument(
        "--print-unit",
        action="store_true",
        help="print a systemd unit for this command line, and end",
    )
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Watch."""
    from vmm_msi.watch.metrics import ListenAddress

    uris = _uris(args)
    metrics = None if args.metrics is None else ListenAddress.parse(args.metrics)
    if metrics is not None and args.once:
        raise UsageError(
            f"--metrics {metrics}: with --once nothing stays to be asked; leave it out"
        )
    if args.print_unit:
        _print_unit(args, uris)
        return 0
    from vmm_msi.watch import service
    from vmm_msi.watch.binder import Binder
    from vmm_msi.watch.service_log import logging_to
    from vmm_msi.watch.systemd_notify import Notifier

    host = load_host(args)

    def load() -> Binder:
        settings = load_config(args)
        return Binder(load_plugins(args, settings), settings, host)

    plan = service.Plan(uris, load, metrics)
    stream = sys.stdout if args.once else sys.stderr
    as_json = args.log_format == "json" or (args.log_format is None and not stream.isatty())
    with logging_to(stream, as_json=as_json):
        if args.once:
            service.once(plan)
        else:
            service.Service(plan, Notifier(os.environ)).run()
    return 0


def _uris(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the connections, each once.

    :raise UsageError: when one is another machine and no host is described.
    """
    named = args.connect or [os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI]
    check_uris(args, named)
    return tuple(dict.fromkeys(named))


def _print_unit(args: argparse.Namespace, uris: tuple[str, ...]) -> None:
    from vmm_msi.watch import unit

    words = [*_program(), "watch"]
    for uri in uris:
        words += ["-c", uri]
    granule = args.granule
    if granule is None and args.host is None:
        # The tables that are handed over do not tell.
        granule = str(Granule(os.sysconf("SC_PAGE_SIZE")))
    named = {"granule": granule, "metrics": args.metrics, "log-format": args.log_format}
    for option, value in named.items():
        if value is not None:
            words += [f"--{option}", value]
    for name in args.disable_plugin:
        words += ["--disable-plugin", name]
    if args.config is not None:
        words += ["--config", str(args.config.absolute())]
    for host in args.host or ():
        words += ["--host", host if isinstance(host, str) else str(host.absolute())]
    print_document(unit.render(words, [] if args.host is not None else _tables()))


def _program() -> list[str]:
    """Return the words that start this program."""
    import sysconfig
    from pathlib import Path

    script = Path(sysconfig.get_path("scripts"), "vmm-msi")
    return [str(script)] if script.exists() else [sys.executable, "-m", "vmm_msi"]


def _tables() -> list[Path]:
    """Return the files that describe this machine; the ACPI tables where it has neither kind."""
    from vmm_msi.host.live import ACPI_TABLES, DEVICE_TREE

    acpi = [ACPI_TABLES / name for name in ("IORT", "APIC")]
    return [DEVICE_TREE] if DEVICE_TREE.exists() and not acpi[0].exists() else acpi
