"""``vmm-msi lab``: build and run an emulated Arm host on a machine without Arm hardware.

Subcommands live in modules of their own, each with a table ``SUBCOMMANDS``; their imports are
deferred until they run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

#: Subcommand, module below ``vmm_msi.cli`` and the line that ``--help`` shows, in its order.
_WORDS: dict[str, tuple[str, str]] = {
    "root": (
        "lab_build",
        "build a Debian root with a current libvirt and QEMU (once) and print its path",
    ),
    "build": (
        "lab_build",
        "build the emulated Arm host's kernel, user land and root (once)",
    ),
    "up": ("lab_host", "start the emulated Arm host and leave it running"),
    "down": ("lab_host", "stop the emulated Arm host"),
    "status": ("lab_host", "show whether the emulated Arm host runs, and its devices"),
    "console": ("lab_host", "connect to the serial console of the emulated Arm host"),
    "guest": (
        "lab_guest",
        "run a guest with assigned devices in the emulated Arm host and count their interrupts",
    ),
    "compare-guests": (
        "lab_compare_guests",
        "run the strategies' truth table on real guests and compare it with the simulator",
    ),
    "capture": ("lab_capture", "write a capture of the emulated Arm host"),
    "conform": (
        "lab_conform",
        "run random call sequences in the simulator and on the real kernel and compare the results",
    ),
}


class Subcommand(NamedTuple):
    """One subcommand of ``lab``."""

    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _load(word: str) -> Subcommand:
    module = importlib.import_module(f"vmm_msi.cli.{_WORDS[word][0]}")
    subcommand: Subcommand = module.SUBCOMMANDS[word]
    return subcommand


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their arguments."""
    words = parser.add_subparsers(
        title="subcommands", dest="lab_command", metavar="SUBCOMMAND", required=True
    )
    for word, (_module, summary) in _WORDS.items():
        _load(word).configure(
            words.add_parser(word, help=summary, description=summary, allow_abbrev=False)
        )


def run(args: argparse.Namespace) -> int:
    """Run the subcommand."""
    return _load(args.lab_command).run(args)
