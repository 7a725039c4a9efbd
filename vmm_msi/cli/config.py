"""``vmm-msi config check``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.cli.common import (
    add_config,
    add_format,
    load_config,
    load_plugins,
    print_json,
    print_text,
)
from vmm_msi.errors import ConfigError, UsageError
from vmm_msi.terminal import print_line

if TYPE_CHECKING:
    import argparse

    from vmm_msi.config import Config
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.report.system_documents import ConfigDocument, ConfiguredDomainJson


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    actions = parser.add_subparsers(
        title="subcommands", dest="action", metavar="SUBCOMMAND", required=True
    )
    summary = "check every name and option in the configuration and show what it selects"
    check = actions.add_parser("check", help=summary, description=summary, allow_abbrev=False)
    add_format(check)
    add_config(check)


def run(args: argparse.Namespace) -> int:
    """Check the configuration."""
    settings = load_config(args)
    try:
        plugins = load_plugins(args, settings)
        _check_names(settings, plugins)
    except UsageError as error:
        raise ConfigError(f"{settings.path or 'the defaults'}: {error}") from error
    table = settings.table
    domains: dict[str, ConfiguredDomainJson] = {
        domain.name: {
            "strategy": domain.strategy or table.strategy,
            "its_selector": domain.its_selector or table.its_selector,
            "devices": {device.address: device.strategy for device in domain.device},
        }
        for domain in table.domain
    }
    if args.format == "json":
        document: ConfigDocument = {
            "schema": 1,
            "path": None if settings.path is None else str(settings.path),
            "strategy": table.strategy,
            "its_selector": table.its_selector,
            "domains": domains,
            "strategies": table.strategies,
            "disabled_plugins": table.plugins.disabled,
        }
        print_json(document)
        return 0
    from vmm_msi.report.columns import columns

    print_line(f"{settings.path or 'no configuration file'}: valid")
    rows = [["libvirt domain", "device", "strategy", "ITS selector"]]
    rows.append(["(any)", "(any)", table.strategy, table.its_selector])
    for name, entry in domains.items():
        rows.append([name, "(any)", str(entry["strategy"]), str(entry["its_selector"])])
    for domain in table.domain:
        rows += [[domain.name, device.address, device.strategy, ""] for device in domain.device]
    print_text(partial(columns, rows))
    return 0


def _check_names(settings: Config, plugins: PluginManager) -> None:
    """Check that every strategy and every selector exists.

    :raise UsageError: for the first that does not.
    """
    from vmm_msi.plugins.hookspecs import PluginKind

    strategies, selectors = settings.names()
    for name in sorted(strategies):
        plugins.info(name, PluginKind.STRATEGY)
    for name in sorted(selectors):
        plugins.info(name, PluginKind.ITS_SELECTOR)
