"""``vmm-msi topology capture``: write the description of a host into one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_output, output_path
from vmm_msi.errors import UsageError
from vmm_msi.host.files.capture_paths import SOFTWARE
from vmm_msi.report.columns import aligned
from vmm_msi.terminal import print_error, print_lines

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from vmm_msi.host.files.capture import Capture

#: Limit of the unread files that are listed.
_MAX_LISTED = 8


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``vmm-msi topology capture``."""
    add_output(parser, "a capture, such as host.tar.zst,")
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="take the files from DIR, laid out like another host's /; default: this machine",
    )
    parser.add_argument(
        "-c",
        "--connect",
        metavar="URI",
        help="ask this local libvirt connection for the releases of libvirt and QEMU; default: "
        "the release that qemu-system-aarch64 prints",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="list the files of a capture, their use, number and size; write nothing",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from vmm_msi import __version__
    from vmm_msi.host.files.capture import added_files, take_capture
    from vmm_msi.host.files.folder import FolderTree
    from vmm_msi.output import check_target, write_output

    _check(args)
    target = output_path(args)
    if not args.dry_run:
        check_target(target, force=args.force)
    tree = FolderTree(args.root or Path("/"))
    added = added_files(tree) if tree.is_this_machine else {}
    software = _software(args.connect) if tree.is_this_machine else None
    if software is not None:
        added[SOFTWARE] = software
    capture = take_capture(tree, added)
    if args.root is not None and not (capture.files or capture.links):
        raise UsageError(
            f"--root {args.root}: none of a host's files in it; use a folder laid out like the "
            "host's /"
        )
    if args.dry_run:
        print_lines(_list(capture))
    else:
        data = capture.packed(f"vmm-msi {__version__}")
        write_output(target, data, force=args.force)
        print_error(_summary(capture, str(target or "standard output"), len(data)))
    for line in _not_read(capture):
        print_error(line)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Check the combination of options.

    :raise UsageError: for the first invalid one.
    """
    if args.output is None and not args.dry_run:
        raise UsageError("name the file with -o, or use --dry-run, which writes none")
    if args.root is not None and not args.root.is_dir():
        raise UsageError(f"--root {args.root}: not a folder")
    if args.root is not None and args.connect is not None:
        raise UsageError(
            "--connect is for this machine, --root for the files of another; use one of them"
        )
    from vmm_msi.arguments import is_other_machine

    if args.connect is not None and is_other_machine(args.connect):
        raise UsageError(
            f"{args.connect} is another machine, but the files are those of this one; run vmm-msi "
            "topology capture on that machine"
        )


def _software(uri: str | None) -> bytes | None:
    """Return the releases of libvirt and QEMU for a capture; None if they are unknown."""
    from vmm_msi.doctor.software import encode, query_emulator, query_libvirt

    if uri is not None:
        from vmm_msi.libvirt_driver import connect

        with connect(uri, readonly=True) as connection:
            return encode(query_libvirt(connection))
    emulator = query_emulator()
    return None if emulator.qemu is None else encode(emulator)


def _list(capture: Capture) -> Iterator[str]:
    """Yield the paths of a capture with their use, number and size."""
    rows = [("path", "files", "bytes", "kept")]
    reasons = [""]
    for captured, (count, size) in capture.taken.items():
        kept = captured.kept or captured.kind.value
        rows.append((captured.path, str(count or "-"), str(size or "-"), kept))
        reasons.append(captured.why)
    last = ""
    for reason, line in zip(reasons, aligned(rows), strict=True):
        if reason != last:
            yield f"{reason}:"
        last = reason
        yield f"  {line}"


def _summary(capture: Capture, target: str, size: int) -> str:
    content = sum(map(len, capture.files.values()))
    return (
        f"wrote {target}: {len(capture.files)} files with {content} bytes and "
        f"{len(capture.links)} links in {size} bytes"
    )


def _not_read(capture: Capture) -> Iterator[str]:
    """Yield a line for each file that could not be read, or only in part."""
    missing = [*capture.unreadable.items(), *capture.partial.items()]
    for path, reason in missing[:_MAX_LISTED]:
        extent = "only in part" if path in capture.partial else "not read"
        yield f"{extent}: {path}: {reason}"
    if len(missing) > _MAX_LISTED:
        yield f"and {len(missing) - _MAX_LISTED} more; the manifest of the capture lists them"
    if missing and os.geteuid() != 0:
        yield "root can read more: run sudo vmm-msi topology capture"
