"""``vmm-msi scenario``: write scenario files."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

#: Subcommand, its module in this package and its line in ``--help``.
_SUBCOMMANDS = {
    "init": ("scenario_init", "write a complete, commented scenario to edit and compare"),
    "minimise": (
        "scenario_minimise",
        "find the smallest scenario in which an MSI ends as in a larger one",
    ),
}


class _Subcommand(Protocol):
    def configure(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, args: argparse.Namespace) -> int: ...


def _load(name: str) -> _Subcommand:
    module: _Subcommand = importlib.import_module(f"vmm_msi.cli.{_SUBCOMMANDS[name][0]}")
    return module


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``vmm-msi scenario``."""
    actions = parser.add_subparsers(
        title="subcommands", dest="action", metavar="SUBCOMMAND", required=True
    )
    for name, (_module, summary) in _SUBCOMMANDS.items():
        _load(name).configure(
            actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        )


def write_text(text: str, path: Path | None, *, force: bool) -> None:
    """Write a file that everyone may read; None for standard output.

    :raise OutputError: when it exists without ``force`` or cannot be written.
    """
    from vmm_msi.output import output_file
    from vmm_msi.terminal import print_document

    if path is None:
        print_document(text)
        return
    with output_file(path, force=force, mode=0o666) as file:
        file.write(text.encode())


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    return _load(args.action).run(args)
