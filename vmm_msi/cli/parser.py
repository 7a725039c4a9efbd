"""The parser of the command line: argparse with hints for near misses.

An unknown command, option or value is answered with the nearest valid one; an option of another
program, such as virsh's ``--live``, with the option that does the same here.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from vmm_msi.errors import CommandLineError, did_you_mean
from vmm_msi.terminal import print_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: What to use instead of options that other programs have, or that had another name here. Of
#: several answers the first whose option the command has is given.
INSTEAD: dict[str, tuple[str, ...]] = {
    # virsh
    "--live": ("--scope live",),
    "--current": ("--scope live for a running guest, --scope config for one that is off",),
    "--persistent": ("--scope both",),
    "--file": ("--domain FILE",),
    "--managed": ("no option: devices are managed unless there is --unmanaged",),
    "--print-xml": ("no option: render prints the XML unless there is --dry-run",),
    "--uri": ("--connect URI",),
    # Options with other names here.
    "--json": ("--format json",),
    "--log-format": ("--format",),
    "--output-format": ("--format",),
    "--name": ("--domain DOMAIN",),
    "--xml": ("--domain FILE",),
    "--vm": ("--domain DOMAIN",),
    "--out": ("--output FILE",),
    "--overwrite": ("--force",),
    "--preview": ("--dry-run",),
    "--topology": ("--host HOST",),
}

#: What to use instead of words that are not commands.
INSTEAD_OF_COMMAND = {
    "help": "vmm-msi --help",
    "version": "vmm-msi --version",
    "list": "vmm-msi status, which lists guests, or vmm-msi plugins list",
    "check": "vmm-msi doctor",
    "capture": "vmm-msi topology capture",
    "show": "vmm-msi topology show",
    "diff": "vmm-msi attach --print-diff",
    "simulate": "vmm-msi compare",
    "init": "vmm-msi scenario init",
    "attach-device": "vmm-msi attach",
    "detach-device": "vmm-msi detach",
}

VIRSH_CONFIG = (
    "--config names a configuration file of vmm-msi; virsh's --config is --scope config, the "
    "default"
)


class Parser(argparse.ArgumentParser):
    """A parser that raises its errors, with a hint where something valid is near."""

    color: bool

    def parse_words(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse a command line in which every word must be known.

        :raise CommandLineError: for the first error.
        """
        command = self._check_options(words)
        try:
            args, unknown = self.parse_known_args(list(words))
        except CommandLineError as error:
            if "--config" in words and "--scope" in _options(command):
                raise CommandLineError(f"{error}; {VIRSH_CONFIG}") from error
            raise CommandLineError(f"{error}; see {command.prog} --help") from error
        if unknown:
            kind = "option" if unknown[0].startswith("-") else "argument"
            raise CommandLineError(f"unknown {kind} {unknown[0]!r}; see {command.prog} --help")
        return args

    def print_help(self, file: object = None) -> None:
        """Print the help; argparse would ignore a standard output that is full."""
        del file
        # Python 3.14 puts colours into the text, which would be shown as escapes.
        self.color = False
        print_lines(self.format_help().splitlines())

    def error(self, message: str) -> NoReturn:
        """Raise an error instead of printing it and exiting."""
        raise CommandLineError(message)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> object:
        """Return the values of an argument; Python 3.11 takes ``--option=--`` for no value."""
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)

    def _check_options(self, words: Sequence[str]) -> argparse.ArgumentParser:
        """Refuse the first unknown long option; argparse reports missing arguments first.

        :return: the parser of the command that the words name.
        """
        parser: argparse.ArgumentParser = self
        for word in words:
            option = word.partition("=")[0]
            if word == "--":
                break
            if not word.startswith("-"):
                below = _commands(parser)
                if below and word not in below:
                    break  # argparse reports the unknown command.
                parser = below.get(word, parser)
            elif " " in option:
                continue  # a value, such as that of compare --against
            elif option.startswith("--") and option not in _options(parser):
                hint = _instead(option, _options(parser)) or f"see {parser.prog} --help"
                raise CommandLineError(f"unknown option {option!r}; {hint}")
        return parser

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Refuse a value that is not one of the action's choices, and name the nearest."""
        if action.choices is None or value in action.choices:
            return
        valid = [str(choice) for choice in action.choices]
        hint = did_you_mean(str(value), valid)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - no public name
            if value in INSTEAD_OF_COMMAND and value not in valid and self.prog == "vmm-msi":
                hint = f"use {INSTEAD_OF_COMMAND[value]}; "
            raise argparse.ArgumentError(
                None, f"unknown {str(action.metavar).lower()} {value!r}; {hint}{_valid(valid)}"
            )
        raise argparse.ArgumentError(action, f"invalid value {value!r}; {hint}{_valid(valid)}")


def _valid(words: Iterable[str]) -> str:
    return f"valid: {', '.join(words)}"


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Return the names of the options of a parser."""
    actions = parser._actions  # noqa: SLF001 - argparse has no public way to its actions
    return [option for action in actions for option in action.option_strings]


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the subcommands of a parser, by name."""
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            return dict(action.choices)
    return {}


def _instead(option: str, valid: Sequence[str]) -> str:
    """Return what to use instead of an unknown option; empty if nothing is near."""
    for answer in INSTEAD.get(option, ()):
        name = answer.partition(" ")[0]
        if not name.startswith("--") or name in valid:
            return f"use {answer}"
    return did_you_mean(option, valid).rstrip()
