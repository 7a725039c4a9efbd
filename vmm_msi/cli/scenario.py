"""``vmm-msi scenario``: write scenario files."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import argparse

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


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    return _load(args.action).run(args)
