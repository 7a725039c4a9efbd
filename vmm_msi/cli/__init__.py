"""The command line: one module per command, imported only when that command runs.

A command module has ``configure(parser)``, which adds its arguments, and ``run(args)``, which
returns the exit code. An error of this package is printed as one line on standard error and sets
the exit code of its class; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from vmm_msi.cli.parser import Parser
from vmm_msi.errors import (
    FindingsError,
    OutputError,
    ScenarioError,
    UnreadableError,
    UsageError,
    VmmMsiError,
)
from vmm_msi.terminal import Color, choose_color, discard_output, print_error, print_line

if TYPE_CHECKING:
    import argparse
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
    "bind": ("bind", "bind the doorbells of a running guest in the kernel by hand, or unbind them"),
    "render": ("render", "edit domain XML from standard input as attach does, without libvirt"),
    "hook": ("hook", "install or check the libvirt hook that vets vmm-msi guests at startup"),
    "watch": ("watch", "run the service that keeps the doorbells of running guests bound"),
    "doctor": ("doctor", "check a host and a guest before it starts, and explain what will fail"),
    "topology": ("topology", "show a host's SMMUs, ITSes and device routes"),
    "scenario": ("scenario", "write scenario files for compare"),
    "explain": ("explain", "explain a fault or an error message and how to fix it"),
    "record": ("record", "write the MSIs of a running guest to a file that replay reads"),
    "replay": ("replay", "replay a recording in the simulator and report differences"),
    "plugins": ("plugins", "list plugins, check them and write new ones"),
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


def build_parser(loaded: Sequence[str] = ()) -> Parser:
    """Return the parser, with the arguments of the commands in ``loaded``."""
    parser = Parser(
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
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if sys.stdout is None:
            raise OutputError("standard output is closed; open it")
        code = _run(words)
        sys.stdout.flush()
    except VmmMsiError as error:
        findings = error.findings if isinstance(error, FindingsError) else ()
        lines = error.errors if isinstance(error, ScenarioError) else ()
        return _fail(words, error.code, error.exit_code, str(error), findings, lines)
    except KeyboardInterrupt:
        return interrupted(words)
    except BrokenPipeError:
        # The reader closed the pipe.
        discard_output()
        return 0
    except OSError as error:
        return _fail(words, *_untranslated(error))
    return code


def _untranslated(error: OSError) -> tuple[str, int, str]:
    """Return code, exit code and message for an error that no command translates."""
    if error.filename is not None:
        # Commands say more about the files that they open; this one has an impossible name.
        message = f"{os.fsdecode(error.filename)}: {error.strerror}"
        return UnreadableError.code, UnreadableError.exit_code, message
    if error.errno == errno.ENOENT:
        message = "the current folder was removed; change to another"
        return UsageError.code, UsageError.exit_code, message
    discard_output()
    return OutputError.code, OutputError.exit_code, f"standard output: {error.strerror}"


def interrupted(words: Sequence[str]) -> int:
    """Report that Ctrl-C interrupted the command line ``words``, and return the exit code."""
    return _fail(words, "interrupted", EXIT_INTERRUPTED, "interrupted")


def _run(words: Sequence[str]) -> int:
    command = _command(words)
    parser = build_parser([command] if command else [])
    try:
        args = parser.parse_words(words)
    except SystemExit:
        return 0  # --help was printed.
    args.words = words
    choose_color(Color(getattr(args, "color", Color.AUTO)))
    if args.version:
        from vmm_msi import __version__

        print_line(f"vmm-msi {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    return load_command(args.command).run(args)


def _command(words: Sequence[str]) -> str:
    """Return the command that the words name; empty without one."""
    named = next((word for word in words if not word.startswith("-")), "")
    return named if named in COMMANDS else ""


def _fail(
    words: Sequence[str],
    code: str,
    exit_code: int,
    message: str,
    findings: Sequence[str] = (),
    lines: Sequence[str] = (),
) -> int:
    """Print an error as one line, or as a JSON document where the words ask for JSON.

    :param findings: ids of the findings because of which the command refuses.
    :param lines: the errors of which the message consists, if they are several.
    :return: the exit code.
    """
    command = _command(words)
    if "--format=json" in words or ("--format", "json") in pairwise(words):
        import json

        document: dict[str, object] = {"command": command, "code": code, "exit_code": exit_code}
        document["message"] = message
        if findings:
            document["findings"] = findings
        if len(lines) > 1:
            document["errors"] = lines
        # ASCII, so that every locale has it; json leaves DEL as it is.
        text = json.dumps({"schema": 1, **document})
        print_error(text.replace("\x7f", r"\u007f"))
    else:
        program = " ".join(["vmm-msi", *([command] if command else [])])
        for line in lines or (message,):
            print_error(f"{program}: {line}")
    return exit_code
