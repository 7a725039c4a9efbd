"""Arguments and preparation that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.cli.parser import VIRSH_CONFIG
from vmm_msi.errors import ConfigError, UsageError
from vmm_msi.terminal import (
    print_document,
    print_error,
    print_lines,
    printable,
    text_width,
    write_bytes,
)
from vmm_msi.types import Granule

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection, Iterable
    from typing import TextIO

    from vmm_msi.config import Choice, Config
    from vmm_msi.domxml.support import Version
    from vmm_msi.library.hosts import Host
    from vmm_msi.pages.blocks import Page
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import HostTopology


#: What each value of ``--format`` is for.
FORMATS = {
    "text": "for people (default)",
    "json": "for programs",
    "html": "a page for browsers, in one file",
    "markdown": "for mails and issues",
    "csv": "rows for spreadsheets",
    "svg": "a picture",
    "toml": "a scenario file",
}


class _FormatNames(tuple[str, ...]):
    """Names of formats; installed plugins, which may be formats, are among them unlisted."""

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        if super().__contains__(name):
            return True
        from importlib.metadata import entry_points

        return any(point.name == name for point in entry_points(group="vmm_msi"))


def add_format(parser: argparse.ArgumentParser, *others: str, plugins: bool = False) -> None:
    """Add ``--format`` and ``--color``.

    :param others: formats besides text and JSON.
    :param plugins: formats of plugins are valid, too.
    """
    names = ("text", "json", *others)
    texts = [f"{name}, {FORMATS[name]}" for name in names]
    if plugins:
        names = _FormatNames(names)
        texts.append("or the name of an installed report format")
    parser.add_argument(
        "--format",
        choices=names,
        default="text",
        help=f"output format: {'; '.join(texts)}",
    )
    add_color(parser)


def add_color(parser: argparse.ArgumentParser) -> None:
    """Add ``--color``."""
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        metavar="WHEN",
        help="colours of outcomes and severities in text: auto (the default: on a terminal, unless "
        "NO_COLOR is set or TERM is dumb), always or never",
    )


def print_text(lines_of: Callable[[int], Iterable[str]], stream: TextIO | None = None) -> None:
    """Print text for people in the width of the terminal.

    :param lines_of: returns the lines for a width.
    :param stream: default: standard output.
    """
    from vmm_msi.report.columns import fitted

    width = text_width(stream)
    print_lines(fitted(lines_of(width), width), stream)


def add_output(parser: argparse.ArgumentParser, what: str, *, required: bool = False) -> None:
    """Add ``-o`` and ``--force``."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=required,
        metavar="FILE",
        help=f"write {what} to FILE; - is standard output",
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing FILE")


def output_path(args: argparse.Namespace) -> Path | None:
    """Return the file that ``-o`` names; None for standard output."""
    return None if args.output is None or args.output == Path("-") else args.output


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and ``--disable-plugin``."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration file; default: $VMM_MSI_CONFIG, ./vmm-msi.toml, the XDG configuration "
        "folder, /etc/vmm-msi",
    )
    parser.add_argument(
        "--disable-plugin",
        action="append",
        default=[],
        metavar="NAME",
        help="do not load this plugin; may be repeated",
    )


#: HOST in ``--help``; ``topology show`` lists its forms.
HOST = (
    "a file, a folder, a capture or a libvirt URI (vmm-msi topology show --help describes the "
    "forms)"
)


def host_name(text: str) -> Path | str:
    """Return a HOST: a URI as text, anything else as a path."""
    return text if "://" in text else Path(text)


def add_host(parser: argparse._ActionsContainer, what: str) -> None:
    """Add ``--host``."""
    parser.add_argument(
        "--host",
        action="append",
        type=host_name,
        metavar="HOST",
        help=f"{what}: {HOST}; may be repeated for several sources about one host, of which "
        "the first wins where they disagree",
    )


def add_hosts(parser: argparse.ArgumentParser, what: str) -> None:
    """Add HOST … for a command that is about a host, and ``--host``, which means the same."""
    parser.add_argument(
        "host", metavar="HOST", nargs="*", action="extend", type=host_name, help=what
    )
    parser.add_argument(
        "--host", action="append", type=host_name, metavar="HOST", help="the same as HOST"
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder laid out like the host's /, such as a copy of its /sys and /proc",
    )


def print_json(document: object) -> None:
    """Print a document for programs to read."""
    from vmm_msi.report.json_text import json_text

    print_document(json_text(document))


def print_page(page: Page, name: str) -> None:
    """Print a report as a page in a format by its name; the writers show what is not printable."""
    from vmm_msi.pages.formats import write_page

    write_bytes(write_page(page, name).encode())


def add_granule(parser: argparse.ArgumentParser) -> None:
    """Add ``--granule``."""
    parser.add_argument(
        "--granule",
        choices=[str(granule) for granule in Granule],
        help="page size of the host's kernel, for a host description without it: ACPI tables and a "
        "device tree lack it; a TOML file, a capture and libvirt have it; default: 4K",
    )


def add_releases(parser: argparse.ArgumentParser, purpose: str, default: str) -> None:
    """Add ``--libvirt`` and ``--qemu``.

    :param purpose: what a release is for.
    :param default: which releases are used without the options.
    """
    for name, program, example in (("libvirt", "libvirt", "12.8"), ("qemu", "QEMU", "11.1")):
        parser.add_argument(
            f"--{name}",
            metavar="RELEASE",
            help=f"release of {program} {purpose}, such as {example}; default: {default}",
        )


def releases(args: argparse.Namespace) -> tuple[Version | None, Version | None]:
    """Return the releases of libvirt and QEMU that the options name.

    :raise UsageError: when one is not a release.
    """
    from vmm_msi.arguments import release

    return release("--libvirt", args.libvirt), release("--qemu", args.qemu)


def read_host(args: argparse.Namespace) -> Host:
    """Read the sources that the arguments name with HOST, ``--host`` and ``--root``.

    :return: the sources of this machine if they name none.
    """
    from vmm_msi.library import hosts

    granule = None if args.granule is None else Granule.parse(args.granule)

    def load() -> PluginManager:
        from vmm_msi.plugins.manager import PluginManager

        if not hasattr(args, "disable_plugin"):
            return PluginManager.load()
        return enabled_plugins(args, load_config(args))

    return hosts.read_host(args.host or (), granule, getattr(args, "root", None), load)


def read_described_host(args: argparse.Namespace) -> Host:
    """Read the sources like :func:`read_host`, for a command about the host itself.

    :raise UsageError: when the arguments name none and this machine is not an Arm host.
    :raise TopologyError: when they name none and this machine's tables cannot be read.
    """
    read = read_host(args)
    known = any(host.smmus or host.itses or host.routes for host in read.sources)
    if args.root is None and not args.host and not known:
        from vmm_msi.host.sources import check_this_machine

        check_this_machine(read.topology)
    return read


def load_sources(args: argparse.Namespace) -> Host:
    """Read the sources of the host that the arguments name; of this machine if they name none.

    :raise UsageError: when they name none and this machine is not an Arm host with an SMMU.
    """
    from vmm_msi.host.sources import check_this_machine

    sources = read_host(args)
    if not args.host:
        check_this_machine(sources.topology)
    return sources


def load_host(args: argparse.Namespace) -> HostTopology:
    """Read the host that the arguments name; this machine if they name none.

    :raise UsageError: when they name none and this machine is not an Arm host with an SMMU.
    """
    return load_sources(args).topology


def check_uris(args: argparse.Namespace, uris: Iterable[str]) -> None:
    """Refuse connections to another machine unless ``--host`` describes it.

    :raise UsageError: for the first such connection.
    """
    from vmm_msi.arguments import is_other_machine

    for uri in uris if args.host is None else ():
        if is_other_machine(uri):
            raise UsageError(f"{uri} is another machine: describe it with --host")


def load_config(args: argparse.Namespace) -> Config:
    """Read the configuration that the arguments name.

    A file that they do not name may be in any of several folders, so it is reported on standard
    error; not with ``--format json``, where an error is the only line there.
    """
    from vmm_msi import config

    _print_warnings()
    try:
        settings = config.load_config(args.config)
    except ConfigError as error:
        if args.config is None or args.config.exists() or not hasattr(args, "scope"):
            raise
        raise ConfigError(f"{error}; {VIRSH_CONFIG}") from error
    is_text = getattr(args, "format", "text") == "text"
    if is_text and args.config is None and settings.path is not None:
        print_error(f"configuration: {settings.path}")
    return settings


def load_plugins(
    args: argparse.Namespace,
    settings: Config,
    named: Iterable[Choice] = (),
    also: Collection[str] = (),
) -> PluginManager:
    """Load the plugins; those that ``named`` or the configuration selects must load.

    :param also: names of further plugins that must load.
    :raise ConfigError: when the configuration sets an option that the strategy does not have.
    """
    strategies, selectors = settings.names()
    required = {choice.strategy for choice in named} | strategies | selectors | {*also}
    plugins = enabled_plugins(args, settings, required)
    _check_options(settings, plugins)
    return plugins


def enabled_plugins(
    args: argparse.Namespace, settings: Config, required: Collection[str] = ()
) -> PluginManager:
    """Load the plugins that neither the arguments nor the configuration disable.

    :param required: names of plugins that must load.
    """
    from vmm_msi.plugins.manager import PluginManager

    by_file = settings.table.plugins.disabled
    if settings.is_named:
        return PluginManager.load({*args.disable_plugin, *by_file}, required)
    return PluginManager.load(args.disable_plugin, required, disabled_unless_observer=by_file)


def _print_warnings() -> None:
    """Let warnings that the package logs pass :func:`printable` on their way to standard error."""
    import logging

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return printable(super().format(record))

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Formatter())


def _check_options(settings: Config, plugins: PluginManager) -> None:
    """Check each ``[strategies.NAME]`` against what the strategy declares."""
    from vmm_msi.config import Choice
    from vmm_msi.iommu.profiles import profile_named
    from vmm_msi.plugins.hookspecs import PluginKind

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
