"""``vmm-msi lab root`` and ``vmm-msi lab build``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_format, print_json
from vmm_msi.cli.lab import Subcommand
from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.terminal import print_line

if TYPE_CHECKING:
    import argparse


def _add_place(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--suite", default=DEFAULT_SUITE, help="Debian suite to build from (default: %(default)s)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help=f"cache folder for {what} (default: vmm-msi in $XDG_CACHE_HOME or ~/.cache)",
    )


def _configure_root(parser: argparse.ArgumentParser) -> None:
    _add_place(parser, "roots")
    add_format(parser)


def _run_root(args: argparse.Namespace) -> int:
    import dataclasses

    from vmm_msi.lab.build.progress import Progress
    from vmm_msi.lab.build.root import ensure_root

    root = ensure_root(args.suite, args.cache, Progress(sys.stderr, "lab root"))
    facts = {**dataclasses.asdict(root), "path": str(root.path)}
    if args.format == "json":
        print_json({"schema": 1, **facts})
    else:
        _print_table({**facts, "cached": "yes" if root.cached else "no"})
    return 0


def _configure_build(parser: argparse.ArgumentParser) -> None:
    _add_place(parser, "roots and images")
    parser.add_argument(
        "--granule",
        choices=("4K", "64K"),
        default="4K",
        help="page size of the kernel (default: %(default)s)",
    )
    parser.add_argument(
        "--patches",
        type=Path,
        metavar="DIR",
        help="apply DIR/*.patch to the kernel source in order of name (patch -p1)",
    )
    add_format(parser)


def _run_build(args: argparse.Namespace) -> int:
    from vmm_msi.lab.build.images import ensure_images
    from vmm_msi.lab.build.progress import Progress
    from vmm_msi.lab.build.root import ensure_root
    from vmm_msi.types import Granule

    progress = Progress(sys.stderr, "lab build")
    granule = Granule.parse(args.granule)
    images = ensure_images(args.suite, granule, args.cache, progress, args.patches)
    root = ensure_root(args.suite, args.cache, progress)
    cached = root.cached and images.cached
    facts: dict[str, object] = {
        "release": images.release,
        "granule": str(granule),
        "suite": images.suite,
        "kernel": str(images.kernel),
        "initrd": str(images.initrd),
        "root": str(root.path),
        "built": images.built,
        "cached": cached,
    }
    sizes = {name: getattr(images, name).stat().st_size for name in ("kernel", "initrd")}
    if args.format == "json":
        sizes = {f"{name}_bytes": size for name, size in sizes.items()}
        print_json({"schema": 1, **facts, **sizes})
        return 0
    for name, size in sizes.items():
        facts[name] = f"{facts[name]} ({size / 1e6:.1f} MB)"
    _print_table({**facts, "cached": "yes" if cached else "no"})
    return 0


def _print_table(facts: dict[str, object]) -> None:
    for name, value in facts.items():
        print_line(f"{name:<13}{value}")


SUBCOMMANDS: dict[str, Subcommand] = {
    "root": Subcommand(_configure_root, _run_root),
    "build": Subcommand(_configure_build, _run_build),
}
