"""The command line: one module per command, imported only when that command runs.

A command module has ``configure(parser)``, which adds its arguments, and ``run(args)``, which
returns the exit code. An error of this package is printed as one line on standard error and sets
the exit code of its class; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn, Protocol

from vmm_msi.terminal import discard_output, print_error, print_line, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Command, its module in this package and its line in ``--help``. They are here so that ``--help``
#: imports no command.
COMMANDS: dict[str, tuple[str, str]] = {
    "compare": (
        "compare",
        "run strategies on a scenario or a host and show where each MSI arrives",
    ),
    "attach": ("attach", "assign host devices to a libvirt domain behind nested vSMMUs"),
    "detach": ("detach", "remove assigned devices and everything that attach added for them"),
    "status": ("status", "show the devices and doorbell bindings of a libvirt domain"),
    "render": ("render", "edit domain XML from standard input as attach does, without libvirt"),
    "hook": ("hook", "install or check the libvirt hook that vets vmm-msi guests at startup"),
    "watch": ("watch", "run the service that keeps the doorbells of running guests bound"),
    "doctor": ("doctor", "check a host and a guest before it starts, and explain what will fail"),
    "topology": ("topology", "show a host's SMMUs, ITSes and device routes"),
    "explain": ("explain", "explain a fault or an error message and how to fix it"),
    "record": ("record", "write the MSIs of a running guest to a file that replay reads"),
    "replay": ("replay", "replay a recording in the simulator and report differences"),
    "plugins": ("plugins", "list plugins"),
    "config": ("config", "check the configuration file"),
    "lab": ("lab", "build and run an emulated Arm host, to try vmm-msi without Arm hardware"),
    "completion": ("completion", "print a shell completion script"),
}

EXIT_INTERRUPTED = 130


class Command(Protocol):
    """The interface of a command module."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Run the command and return the exit code."""
        ...


def load_command(name: str) -> Command:
    """Import the module of the command ``name``."""
    import importlib

    module: Command = importlib.import_module(f"vmm_msi.cli.{COMMANDS[name][0]}")
    return module


class _Parser(argparse.ArgumentParser):
    """A parser whose errors quote words of the command line so that a terminal can show them."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def build_parser(loaded: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser, with the arguments of the commands in ``loaded``."""
    parser = _Parser(
        prog="vmm-msi",
        description="Assign PCI devices to Arm guests behind a nested SMMUv3, and have their "
        "interrupts arrive.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name, (_module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if name in loaded:
            load_command(name).configure(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` and return the exit code (docs/cli.md)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    named = next((word for word in arguments if not word.startswith("-")), None)
    parser = build_parser([named] if named in COMMANDS else [])
    args = parser.parse_args(arguments)
    if args.version:
        from vmm_msi import __version__

        print_line(f"vmm-msi {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    from vmm_msi.errors import OutputError, VmmMsiError

    if sys.stdout is None:
        print_error(f"vmm-msi {args.command}: standard output is closed; open it")
        return OutputError.exit_code
    try:
        code = load_command(args.command).run(args)
        sys.stdout.flush()
    except VmmMsiError as error:
        print_error(f"vmm-msi {args.command}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        print_error(f"vmm-msi {args.command}: interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader closed the pipe.
        discard_output()
        return 0
    except OSError as error:
        # Commands translate errors of the files that they open; this one is of standard output.
        if error.filename is not None:
            raise
        print_error(f"vmm-msi {args.command}: standard output: {error.strerror}")
        discard_output()
        return OutputError.exit_code
    return code
