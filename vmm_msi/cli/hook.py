"""``vmm-msi hook install``, ``uninstall``, ``status`` and ``run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_format, print_json
from vmm_msi.terminal import print_line, print_lines

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vmm_msi.qemuhook.run_records import Journal
    from vmm_msi.qemuhook.script import Installed

_HOOKS = "/etc/libvirt/hooks"
_MODES = ("check", "record")

_WORDS = {
    "install": "put the hook into libvirt's folder",
    "uninstall": "take it out again",
    "status": "say whether it is installed and in order, and show what it saw",
    "run": "do what libvirt has it do, with the domain XML from standard input",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their arguments."""
    words = parser.add_subparsers(
        title="subcommands", dest="hook_command", metavar="SUBCOMMAND", required=True
    )
    for word, summary in _WORDS.items():
        below = words.add_parser(word, help=summary, description=summary, allow_abbrev=False)
        if word != "run":
            below.add_argument(
                "--hooks-dir",
                type=Path,
                default=Path(_HOOKS),
                metavar="FOLDER",
                help=f"libvirt's folder of hooks; default: {_HOOKS}",
            )
        if word in {"install", "run"}:
            below.add_argument(
                "--mode",
                choices=_MODES,
                default=_MODES[0],
                help="check: refuse to start a guest of ours that would not work (default); "
                "record: only write down why it would not",
            )
        if word in {"install", "uninstall"}:
            below.add_argument(
                "--dry-run", action="store_true", help="say what would be done; change nothing"
            )
        if word == "run":
            below.add_argument("guest", metavar="GUEST", help="the guest's name")
            below.add_argument("operation", metavar="OPERATION", help="prepare, start, stopped …")
            below.add_argument("sub_operation", metavar="SUB-OPERATION", help="begin or end")
            below.add_argument("extra", metavar="EXTRA", help="the reason, for release, or -")
        else:
            add_format(below)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand."""
    if args.hook_command == "run":
        from vmm_msi.qemuhook import entry

        words = (args.mode, args.guest, args.operation, args.sub_operation, args.extra)
        return 1 if entry.run(words) == entry.REFUSED else 0
    commands = {"install": _install, "uninstall": _uninstall, "status": _status}
    commands[args.hook_command](args)
    return 0


def _install(args: argparse.Namespace) -> None:
    from vmm_msi.qemuhook import script

    path = script.place(args.hooks_dir)
    was_there = script.inspect(args.hooks_dir)
    changed = script.install(args.hooks_dir, args.mode, dry_run=args.dry_run)
    notes = []
    if was_there is None and not script.has_others(args.hooks_dir):
        notes.append(
            "there was no hook for QEMU guests before: libvirt sees this one when it is told to "
            "reload or is restarted, for instance by systemctl reload libvirtd (or virtqemud); "
            "guests that run are left alone"
        )
    theirs = script.untrusted(args.hooks_dir)
    if theirs is not None:
        notes.append(
            f"libvirt runs hooks as root, and somebody other than root may write to {theirs}"
        )
    done = "installed" if changed else "is installed and up to date"
    if changed and args.dry_run:
        done = "would be installed"
    _report(args, path, done, notes, changed=changed, mode=args.mode)


def _uninstall(args: argparse.Namespace) -> None:
    from vmm_msi.qemuhook import script

    changed = script.uninstall(args.hooks_dir, dry_run=args.dry_run)
    done = "removed" if changed else "is not installed"
    if changed and args.dry_run:
        done = "would be removed"
    _report(args, script.place(args.hooks_dir), done, [], changed=changed, mode=None)


def _report(
    args: argparse.Namespace,
    path: Path,
    done: str,
    notes: list[str],
    *,
    changed: bool,
    mode: str | None,
) -> None:
    if args.format == "json":
        document = {
            "schema": 1,
            "path": str(path),
            "mode": mode,
            "done": done,
            "changed": changed and not args.dry_run,
            "notes": notes,
        }
        print_json(document)
        return
    print_line(f"{path}: {done}")
    print_lines(f"note: {note}" for note in notes)


def _status(args: argparse.Namespace) -> None:
    from vmm_msi.qemuhook import run_records, script

    installed = script.inspect(args.hooks_dir)
    notes = [] if installed is None else _notes(installed)
    journals = []
    try:
        journals = run_records.read_all(run_records.JOURNALS)
    except OSError as error:
        notes.append(
            f"what it saw is in {run_records.JOURNALS}: {error.strerror}; root can read it"
        )
    if args.format == "json":
        _print_status(installed, journals, notes)
        return
    if installed is None:
        print_line(f"{script.place(args.hooks_dir)}: is not installed")
    else:
        print_line(f"{installed.path}: is installed, in mode {installed.mode}")
        print_line(f"vmm-msi {installed.version}, run by {installed.interpreter}")
    for each in journals:
        print_line()
        print_line(f"{each.guest} ({each.uuid})")
        for step in each.steps:
            extra = "" if step.extra == "-" else f" ({step.extra})"
            refused = ", refused" if step.refused else ""
            print_line(f"  {step.time} {step.operation}{extra}{refused}")
            print_lines(f"      {words}" for words in step.problems)
    print_lines(f"note: {note}" for note in notes)


def _notes(installed: Installed) -> list[str]:
    notes = []
    if not installed.works:
        notes.append(
            f"{installed.interpreter} cannot be run or finds no vmm-msi: every guest is let "
            "start; vmm-msi hook install puts it right"
        )
    elif not installed.in_step:
        notes.append("it is not what this vmm-msi would install; vmm-msi hook install renews it")
    return notes


def _print_status(
    installed: Installed | None, journals: Sequence[Journal], notes: Sequence[str]
) -> None:
    import dataclasses

    script = None
    if installed is not None:
        script = {**dataclasses.asdict(installed), "path": str(installed.path)}
    document = {
        "schema": 1,
        "installed": script,
        "guests": [dataclasses.asdict(each) for each in journals],
        "notes": list(notes),
    }
    print_json(document)
