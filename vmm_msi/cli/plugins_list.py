"""``vmm-msi plugins list``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.cli.common import (
    add_config,
    add_format,
    enabled_plugins,
    load_config,
    print_json,
    print_text,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from vmm_msi.plugins.manager import PluginManager, PluginRecord
    from vmm_msi.report.system_documents import PluginJson, PluginsDocument


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--long", action="store_true", help="also what each strategy requires, writes and costs"
    )
    add_format(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """List the plugins; a broken one is listed even where the configuration names it."""
    plugins = enabled_plugins(args, load_config(args))
    if args.format == "json":
        _print_json(plugins)
        return 0
    from vmm_msi.report.columns import columns_with_prose

    rows = [["plugin", "kind", "state", "from", "what for"]]
    for record in plugins.records():
        kind = record.info.kind.value if record.info is not None else "?"
        summary = record.info.summary if record.info is not None else record.problem
        rows.append([record.name, kind, record.state, record.origin, summary])
    print_text(partial(columns_with_prose, rows))
    if args.long:
        for record in plugins.records():
            print_text(partial(_details, record))
    return 0


def _details(record: PluginRecord, width: int) -> Iterator[str]:
    """Yield what a strategy requires, writes and costs."""
    from vmm_msi.plugins.hookspecs import PluginKind
    from vmm_msi.report.columns import prose

    info = record.info
    if info is None or info.kind is not PluginKind.STRATEGY:
        return
    options = ", ".join(
        f"{field}={getattr(info.options(), field)}" for field in info.options.__struct_fields__
    )
    yield ""
    yield f"{info.name}: {info.summary}"
    for label, text in (
        ("guest", info.guest),
        ("host", info.host),
        ("XML", info.xml),
        ("costs", info.costs),
        ("options", f"{options or 'none'} (defaults)"),
    ):
        yield from prose(text, width, f"  {label:<7}  ")


def _print_json(plugins: PluginManager) -> None:
    from vmm_msi.plugins.hookspecs import PluginKind

    entries: list[PluginJson] = []
    for record in plugins.records():
        info = record.info
        entry: PluginJson = {
            "name": record.name,
            "kind": info.kind.value if info is not None else None,
            "state": record.state.value,
            "origin": record.origin,
            "problem": record.problem or None,
            "summary": info.summary if info is not None else None,
        }
        if info is not None and info.kind is PluginKind.STRATEGY:
            defaults = info.options()
            fields = defaults.__struct_fields__
            entry["options"] = {field: getattr(defaults, field) for field in fields}
            entry["needs"] = sorted(plugins.needs(info.name, defaults).capabilities)
            entry["guest"] = info.guest
            entry["host"] = info.host
            entry["xml"] = info.xml
            entry["costs"] = info.costs
        entries.append(entry)
    document: PluginsDocument = {"schema": 1, "plugins": entries}
    print_json(document)
