"""``vmm-msi lab root`` and ``vmm-msi lab build``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_format, print_json
from vmm_msi.cli.lab import Subcommand
from vmm_msi.cli.lab_host import add_kernel, kernel_of
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
    add_kernel(parser, "stock and bind")
    parser.add_argument(
        "--itses",
        action="store_true",
        help="also build the QEMU of an emulated host with several ITSes (lab up --itses N)",
    )
    add_format(parser)


def _run_build(args: argparse.Namespace) -> int:
    from vmm_msi.lab.build.images import ensure_images
    from vmm_msi.lab.build.its_emulator import ensure_its_emulator
    from vmm_msi.lab.build.kernel_flavour import DEFAULTS
    from vmm_msi.lab.build.kernel_tree import tree_facts
    from vmm_msi.lab.build.progress import Progress
    from vmm_msi.lab.build.root import ensure_root
    from vmm_msi.types import Granule

    progress = Progress(sys.stderr, "lab build")
    granule = Granule.parse(args.granule)
    chosen = kernel_of(args)
    names = DEFAULTS if chosen is None else (chosen,)
    # First, so that another process can build the kernels meanwhile.
    emulator = ensure_its_emulator(args.suite, args.cache, progress) if args.itses else None
    built = {name: ensure_images(args.suite, granule, args.cache, progress, name) for name in names}
    root = ensure_root(args.suite, args.cache, progress)
    first, *others = built.values()
    cached = root.cached and all(images.cached for images in built.values())
    cached = cached and (emulator is None or emulator.cached)
    kernels = {"kernel": first.kernel}
    kernels |= {f"kernel {images.flavour}": images.kernel for images in others}
    files = {**kernels, "initrd": first.initrd}
    if emulator is not None:
        files["emulator"] = emulator.path
    facts: dict[str, object] = {
        "release": first.release,
        "granule": str(granule),
        "suite": first.suite,
        **{name: str(path) for name, path in files.items()},
        "root": str(root.path),
    }
    if emulator is not None:
        facts["qemu"] = emulator.version
    sizes = {name: path.stat().st_size for name, path in files.items()}
    tree = tree_facts(args.suite, args.cache)
    if tree is not None:
        facts["objects"], sizes["objects"] = str(tree.path), tree.size
    facts |= {"built": max(images.built for images in built.values()), "cached": cached}
    if args.format == "json":
        sizes = {f"{name}_bytes": size for name, size in sizes.items()}
        document = {name.replace(" ", "_"): value for name, value in {**facts, **sizes}.items()}
        print_json({"schema": 1, **document})
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
