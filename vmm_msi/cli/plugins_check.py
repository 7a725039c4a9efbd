"""``vmm-msi plugins check``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_format, print_json
from vmm_msi.errors import PluginError
from vmm_msi.quantity import quantity
from vmm_msi.terminal import print_lines

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from vmm_msi.report.system_documents import PluginsCheckDocument
    from vmm_msi.testing.plugin_check import CheckedPlugin


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "plugin",
        metavar="PLUGIN",
        help="the name of an installed plugin, or MODULE or MODULE:CLASS, also in this folder",
    )
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Check the plugin; return the exit code of a plugin that breaks the contract if it does."""
    from vmm_msi.testing.plugin_check import check_plugins

    checked = check_plugins(args.plugin)
    if args.format == "json":
        print_json(_document(checked))
    else:
        print_lines(_lines(checked))
    return PluginError.exit_code if any(plugin.problems for plugin in checked) else 0


def _lines(checked: Sequence[CheckedPlugin]) -> Iterator[str]:
    for plugin in checked:
        yield from map(str, plugin.problems)
        kind = "not a plugin" if plugin.info is None else str(plugin.info.kind)
        result = quantity(len(plugin.problems), "problem") if plugin.problems else "no problem"
        yield f"{plugin.name} ({kind}, {plugin.origin}): {quantity(plugin.runs, 'check')}, {result}"


def _document(checked: Sequence[CheckedPlugin]) -> PluginsCheckDocument:
    return {
        "schema": 1,
        "plugins": [
            {
                "name": plugin.name,
                "kind": None if plugin.info is None else plugin.info.kind.value,
                "origin": plugin.origin,
                "checks": plugin.runs,
                "problems": [
                    {
                        "check": report.check,
                        "place": report.place,
                        "what": report.what,
                        "remedy": report.remedy,
                        "scenarios": list(report.scenarios),
                    }
                    for report in plugin.problems
                ],
            }
            for plugin in checked
        ],
    }
