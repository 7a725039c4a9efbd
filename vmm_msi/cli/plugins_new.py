"""``vmm-msi plugins new``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.terminal import print_lines

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "name",
        metavar="NAME",
        help="name of the strategy: words of lower-case letters, joined by -",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder to write; default: ./vmm-msi-NAME",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="overwrite the files of these names in an existing FOLDER",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the files without writing any")


def run(args: argparse.Namespace) -> int:
    """Write the files and list them."""
    from importlib.metadata import entry_points

    from vmm_msi.plugins.hookspecs import PROJECT
    from vmm_msi.testing import new_distribution

    new_distribution.check_name(args.name, {point.name for point in entry_points(group=PROJECT)})
    files = new_distribution.files_of(args.name)
    folder = args.output or Path(new_distribution.distribution_name(args.name))
    if not args.dry_run:
        new_distribution.write(folder, files, force=args.force)
    print_lines(_lines(folder, files, args.name, dry_run=args.dry_run))
    return 0


def _lines(folder: Path, files: Iterable[str], name: str, *, dry_run: bool) -> Iterator[str]:
    for path in files:
        yield f"{'would write' if dry_run else 'wrote'} {folder / path}"
    if dry_run:
        return
    yield ""
    yield "next:"
    yield f"  cd {folder}"
    yield "  python -m pip install -e '.[test]'"
    yield "  pytest"
    yield f"  pytest --pyargs vmm_msi.testing --vmm-msi-strategy {name}"
