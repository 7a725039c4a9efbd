"""Arguments and set-up that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import ConfigError, UsageError
from vmm_msi.model import Granule

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from vmm_msi.config import Choice, Config
    from vmm_msi.host import PluginHost
    from vmm_msi.model import HostTopology


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


def add_host(parser: argparse._ActionsContainer, what: str) -> None:
    """Add ``--host``."""
    parser.add_argument(
        "--host",
        type=Path,
        metavar="HOST",
        help=f"{what}: a TOML file with [host], a device-tree blob or a folder with the ACPI "
        "tables IORT and APIC",
    )


def print_json(document: object) -> None:
    """Print a document for programs to read."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(document)).decode())


def add_granule(parser: argparse.ArgumentParser) -> None:
    """Add ``--granule``."""
    parser.add_argument(
        "--granule",
        choices=[str(granule) for granule in Granule],
        help="page size of the host's kernel, where the host description does not tell: a TOML "
        "file does, ACPI tables and a device tree do not; default: 4K",
    )


def load_host(args: argparse.Namespace) -> HostTopology:
    """Read the host that the arguments name."""
    from vmm_msi import topology

    return topology.load_host(args.host, Granule.parse(args.granule or "4K"))


def check_uris(args: argparse.Namespace, uris: Iterable[str]) -> None:
    """Refuse connections to another machine when no description of that is named.

    :raise UsageError: for the first one.
    """
    for uri in uris if args.host is None else ():
        if "://" in uri and not uri.split("://", 1)[1].startswith("/"):
            raise UsageError(f"{uri} is another machine: name a description of it with --host")


def host_or_live(args: argparse.Namespace) -> HostTopology:
    """Read the host that the arguments name, else this machine."""
    from vmm_msi.topology.live import load_live

    return load_live() if args.host is None else load_host(args)


def load_config(args: argparse.Namespace) -> Config:
    """Read the configuration that the arguments name."""
    from vmm_msi import config

    return config.load_config(args.config)


def load_plugins(
    args: argparse.Namespace, settings: Config, named: Iterable[Choice] = ()
) -> PluginHost:
    """Load the plugins; those that a strategy or the configuration names must load.

    :raise ConfigError: when the configuration gives a strategy options that it does not have.
    """
    from vmm_msi.host import PluginHost

    strategies, selectors = settings.names()
    wanted = {choice.strategy for choice in named} | strategies | selectors
    disabled = {*args.disable_plugin, *settings.table.plugins.disabled}
    plugins = PluginHost.load(disabled, wanted)
    _check_options(settings, plugins)
    return plugins


def _check_options(settings: Config, plugins: PluginHost) -> None:
    """Check each ``[strategies.NAME]`` against what the strategy declares."""
    from vmm_msi.config import Choice
    from vmm_msi.hookspecs import PluginKind
    from vmm_msi.iommu.profiles import profile_named

    for name, table in settings.table.strategies.items():
        choice = Choice.of(name, table)
        known: tuple[str, ...] = ()
        try:
            known = plugins.info(name, PluginKind.STRATEGY).options.__struct_fields__
            plugins.options(name, choice.options)
            if choice.profile is not None:
                profile_named(choice.profile)
        except UsageError as error:
            unknown = [key for key, _value in choice.options if known and key not in known]
            where = ("strategies", name, *unknown[:1])
            raise ConfigError(f"{_place(settings, where)}: {error}") from error


def _place(settings: Config, where: tuple[str, ...]) -> str:
    """Return the file and the line of a key."""
    from vmm_msi import tomlfile

    if settings.path is None:
        return "configuration"
    text = tomlfile.read_text(settings.path, ConfigError)
    return f"{settings.path}:{tomlfile.find_line(text, where)}"
