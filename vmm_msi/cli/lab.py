"""``vmm-msi lab``: what is needed to try things on a machine without Arm hardware."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.cli.common import add_format, print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


class _Subcommand(NamedTuple):
    """One word after ``lab``."""

    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their arguments."""
    words = parser.add_subparsers(
        title="subcommands", dest="lab_command", metavar="SUBCOMMAND", required=True
    )
    for name, subcommand in _SUBCOMMANDS.items():
        summary = subcommand.summary
        subcommand.configure(
            words.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        )


def run(args: argparse.Namespace) -> int:
    """Run the subcommand."""
    return _SUBCOMMANDS[args.lab_command].run(args)


def _configure_root(parser: argparse.ArgumentParser) -> None:
    from vmm_msi.lab.root import DEFAULT_SUITE

    parser.add_argument(
        "--suite", default=DEFAULT_SUITE, help="Debian suite to take it from (default: %(default)s)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where roots are kept (default: vmm-msi in $XDG_CACHE_HOME or ~/.cache)",
    )
    add_format(parser)


def _run_root(args: argparse.Namespace) -> int:
    from vmm_msi.lab.progress import Progress
    from vmm_msi.lab.root import ensure_root

    root = ensure_root(args.suite, args.cache, Progress(sys.stderr, "lab root"))
    facts = {**dataclasses.asdict(root), "path": str(root.path)}
    if args.format == "json":
        print_json({"schema": 1, **facts})
    else:
        facts["cached"] = "yes" if root.cached else "no"
        for name, value in facts.items():
            print(f"{name:<13}{value}")
    return 0


_SUBCOMMANDS: dict[str, _Subcommand] = {
    "root": _Subcommand(
        "build, once, a Debian root with a current libvirt and QEMU, and say where it is",
        _configure_root,
        _run_root,
    ),
}
