"""``vmm-msi plugins``: its subcommands live in modules of their own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

#: Subcommand, module below ``vmm_msi.cli`` and the line that ``--help`` shows, in its order.
_WORDS: dict[str, tuple[str, str]] = {
    "list": (
        "plugins_list",
        "list every installed plugin, what it is for and where it is from",
    ),
    "check": (
        "plugins_check",
        "check a plugin: contract, types, names and, of a strategy, the conformance suite",
    ),
    "new": (
        "plugins_new",
        "write a new distribution with a strategy: project, class, tests",
    ),
}


class Subcommand(NamedTuple):
    """One subcommand of ``plugins``."""

    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their arguments."""
    actions = parser.add_subparsers(
        title="subcommands", dest="action", metavar="SUBCOMMAND", required=True
    )
    for word, (_module, summary) in _WORDS.items():
        _load(word).configure(
            actions.add_parser(word, help=summary, description=summary, allow_abbrev=False)
        )


def run(args: argparse.Namespace) -> int:
    """Run the subcommand."""
    return _load(args.action).run(args)


def _load(word: str) -> Subcommand:
    module = importlib.import_module(f"vmm_msi.cli.{_WORDS[word][0]}")
    return Subcommand(module.configure, module.run)
