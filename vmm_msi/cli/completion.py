"""``vmm-msi completion``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "shell", choices=("bash", "zsh", "tcsh"), help="the shell to print a script for"
    )


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from vmm_msi.cli import COMMANDS, build_parser
    from vmm_msi.terminal import print_document

    print_document(shtab.complete(build_parser(tuple(COMMANDS)), args.shell) + "\n")
    return 0
