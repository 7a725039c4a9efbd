"""``vmm-msi topology capture``: take what is known of a host into one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import UsageError
from vmm_msi.host.files.capture_paths import SOFTWARE
from vmm_msi.report.columns import aligned
from vmm_msi.terminal import print_error, print_lines

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from vmm_msi.host.files.capture import Capture

#: Files that could not be read, as many as are printed.
_SHOWN = 8


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``vmm-msi topology capture``."""
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write to FILE, such as host.tar.zst; - is standard output",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="take the files from DIR, which has those of another host; default: this machine",
    )
    parser.add_argument(
        "-c",
        "--connect",
        metavar="URI",
        help="ask this libvirt connection, of this machine, for the releases of libvirt and QEMU; "
        "default: ask qemu-system-aarch64 for its own",
    )
    parser.add_argument("--force", action="store_true", help="write over a FILE that is there")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be taken, why, and how much of it is there; write nothing",
    )


def run(args: argparse.Namespace) -> int:
    """Do what ``args`` say and return the exit code."""
    from vmm_msi import __version__
    from vmm_msi.host.files.capture import capture, made_here
    from vmm_msi.host.files.folder import FolderTree
    from vmm_msi.host.files.pack import check_target, write_archive

    _check(args)
    target = None if args.output in {None, "-"} else Path(args.output)
    if not args.dry_run:
        check_target(target, force=args.force)
    tree = FolderTree(args.root or Path("/"))
    made = made_here(tree) if tree.is_this_machine else {}
    software = _software(args.connect) if tree.is_this_machine else None
    if software is not None:
        made[SOFTWARE] = software
    found = capture(tree, made)
    if args.root is not None and not (found.files or found.links):
        raise UsageError(
            f"--root {args.root}: has none of a host's files; valid is a folder laid out like the "
            "host's /"
        )
    if args.dry_run:
        print_lines(_list(found))
    else:
        data = found.packed(f"vmm-msi {__version__}")
        write_archive(target, data, force=args.force)
        print_error(_summary(found, str(target or "standard output"), len(data)))
    for line in _not_read(found):
        print_error(line)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what does not go together.

    :raise UsageError: for the first such thing.
    """
    if args.output is None and not args.dry_run:
        raise UsageError("a capture goes to a file: name one with -o; --dry-run writes none")
    if args.root is not None and not args.root.is_dir():
        raise UsageError(f"--root {args.root}: there is no such folder")
    if args.root is not None and args.connect is not None:
        raise UsageError(
            "--connect asks this machine and --root names the files of another; leave one out"
        )
    _, remote, place = (args.connect or "").partition("://")
    if remote and not place.startswith("/"):
        raise UsageError(
            f"{args.connect} is another machine, and the files are taken from this one: run "
            "vmm-msi topology capture there"
        )


def _software(uri: str | None) -> bytes | None:
    """Return what a capture keeps of libvirt and QEMU; None where nothing is known of them."""
    from vmm_msi.doctor.software import ask_emulator, ask_libvirt, encode

    if uri is not None:
        from vmm_msi.libvirt_driver import connect

        with connect(uri, readonly=True) as connection:
            return encode(ask_libvirt(connection))
    found = ask_emulator()
    return None if found.qemu is None else encode(found)


def _list(found: Capture) -> Iterator[str]:
    """Yield what a capture takes, why, and how much there is."""
    rows = [("path", "files", "bytes", "what of it")]
    reasons = [""]
    for source, (count, size) in found.taken.items():
        what = source.kept or source.kind.value
        rows.append((source.path, str(count or "-"), str(size or "-"), what))
        reasons.append(source.why)
    last = ""
    for reason, line in zip(reasons, aligned(rows), strict=True):
        if reason != last:
            yield f"{reason}:"
        last = reason
        yield f"  {line}"


def _summary(found: Capture, target: str, size: int) -> str:
    taken = sum(map(len, found.files.values()))
    return (
        f"wrote {target}: {len(found.files)} files with {taken} bytes and {len(found.links)} links "
        f"in {size} bytes"
    )


def _not_read(found: Capture) -> Iterator[str]:
    """Yield a line for each file that could not be read, or not all of it."""
    missing = [*found.unreadable.items(), *found.partial.items()]
    for path, reason in missing[:_SHOWN]:
        words = "only in part" if path in found.partial else "not read"
        yield f"{words}: {path}: {reason}"
    if len(missing) > _SHOWN:
        yield f"and {len(missing) - _SHOWN} more; the capture has a list of them"
    if missing and os.geteuid() != 0:
        yield "root can read more: sudo vmm-msi topology capture"
