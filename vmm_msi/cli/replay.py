"""``vmm-msi replay``: replay a recording in the simulator and report differences."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.cli.common import (
    add_config,
    add_format,
    load_config,
    load_plugins,
    print_json,
    print_page,
    print_text,
)

if TYPE_CHECKING:
    import argparse

#: The simulator's results differ from the recording.
EXIT_DIFFERS = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a recording from vmm-msi record")
    parser.add_argument(
        "--strategy",
        metavar="NAME[:key=value,…]",
        help="use another strategy for every device; default: the recorded strategies",
    )
    add_format(parser, "html", "markdown", "csv")
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Replay; return 1 if the simulator does not agree."""
    from vmm_msi.config import Choice
    from vmm_msi.recording import recording_json
    from vmm_msi.recording.replay import replay
    from vmm_msi.report.replay import to_json, to_lines

    choice = None if args.strategy is None else Choice.parse(args.strategy)
    recording = recording_json.read(args.file)
    settings = load_config(args)
    plugins = load_plugins(args, settings, [] if choice is None else [choice])
    result = replay(recording, plugins, settings.its_selector(recording.guest.name), choice)
    if args.format == "json":
        print_json(to_json(result))
    elif args.format != "text":
        from vmm_msi.cli.provenance import provenance
        from vmm_msi.report.replay_page import to_page

        page = to_page(result, {"recording": str(args.file), **provenance(args)})
        print_page(page, args.format)
    else:
        print_text(partial(to_lines, result))
    return 0 if result.agrees else EXIT_DIFFERS
