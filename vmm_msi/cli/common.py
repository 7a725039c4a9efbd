"""Arguments and set-up that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi import config
from vmm_msi.host import PluginHost

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from vmm_msi.config import Choice, Config


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add ``--format``."""
    parser.add_argument(
        "--format",
        choices=("table", "json"),
        default="table",
        help="what to print: a table for people (default) or JSON for programs",
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and ``--disable-plugin``."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration; default: $VMM_MSI_CONFIG, ./vmm-msi.toml, the XDG configuration "
        "folder, /etc/vmm-msi",
    )
    parser.add_argument(
        "--disable-plugin",
        action="append",
        default=[],
        metavar="NAME",
        help="do not load this plugin; may be repeated",
    )


def load_config(args: argparse.Namespace) -> Config:
    """Read the configuration that the arguments name."""
    return config.load(args.config)


def load_plugins(
    args: argparse.Namespace, settings: Config, named: Iterable[Choice] = ()
) -> PluginHost:
    """Load the plugins; those that a strategy or the configuration names must load."""
    strategies, selectors = settings.names()
    wanted = {choice.strategy for choice in named} | strategies | selectors
    disabled = {*args.disable_plugin, *settings.table.plugins.disabled}
    return PluginHost.load(disabled, wanted)
