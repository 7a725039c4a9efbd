"""``vmm-msi hook install``, ``uninstall``, ``status`` and ``run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_format, print_json
from vmm_msi.terminal import print_line, print_lines

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vmm_msi.qemuhook.run_records import RunRecord
    from vmm_msi.qemuhook.script import InstalledScript
    from vmm_msi.report.system_documents import HookDocument

#: Exit code of ``hook run`` if the guest would be refused.
EXIT_REFUSED = 1

_HOOKS = "/etc/libvirt/hooks"
_MODES = ("check", "record")

_SUMMARIES = {
    "install": "install the hook in libvirt's folder",
    "uninstall": "remove the hook",
    "status": "show whether the hook is installed and works, and the calls of each guest",
    "run": "run the hook as libvirt does, with the domain XML from standard input",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their arguments."""
    subcommands = parser.add_subparsers(
        title="subcommands", dest="hook_command", metavar="SUBCOMMAND", required=True
    )
    for name, summary in _SUMMARIES.items():
        subcommand = subcommands.add_parser(
            name, help=summary, description=summary, allow_abbrev=False
        )
        if name != "run":
            subcommand.add_argument(
                "--hooks-dir",
                type=Path,
                default=Path(_HOOKS),
                metavar="FOLDER",
                help=f"libvirt's folder of hooks; default: {_HOOKS}",
            )
        if name in {"install", "run"}:
            subcommand.add_argument(
                "--mode",
                choices=_MODES,
                default=_MODES[0],
                help="check: refuse to start a vmm-msi guest that has problems (default); "
                "record: only record the problems",
            )
        if name == "install":
            subcommand.add_argument(
                "--force",
                action="store_true",
                help="install it even if a user other than root may change the code that it runs",
            )
        if name in {"install", "uninstall"}:
            subcommand.add_argument(
                "--dry-run", action="store_true", help="print the changes, but apply none"
            )
        if name == "run":
            subcommand.add_argument("guest", metavar="GUEST", help="the guest's name")
            subcommand.add_argument(
                "operation", metavar="OPERATION", help="prepare, start, stopped, …"
            )
            subcommand.add_argument("sub_operation", metavar="SUB-OPERATION", help="begin or end")
            subcommand.add_argument(
                "extra", metavar="EXTRA", help="the reason of a release, else -"
            )
        else:
            add_format(subcommand)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand."""
    if args.hook_command == "run":
        from vmm_msi.qemuhook import entry

        arguments = (args.mode, args.guest, args.operation, args.sub_operation, args.extra)
        return EXIT_REFUSED if entry.run(arguments) == entry.REFUSED else 0
    commands = {"install": _install, "uninstall": _uninstall, "status": _status}
    commands[args.hook_command](args)
    return 0


def _install(args: argparse.Namespace) -> None:
    from vmm_msi.qemuhook import script

    path = script.script_path(args.hooks_dir)
    result = script.install(args.hooks_dir, args.mode, dry_run=args.dry_run, force=args.force)
    notes = []
    if result.is_new and not script.has_other_hooks(args.hooks_dir):
        notes.append(
            "this is the first hook for QEMU guests: libvirt uses it after a reload or restart, "
            "for example systemctl reload libvirtd (or virtqemud); a reload does not affect "
            "running guests"
        )
    if result.weakness:
        notes.append(f"libvirt runs the hook as root, and {result.weakness}")
    done = "installed" if result.changed else "is installed and up to date"
    if result.changed and args.dry_run:
        done = "would be installed"
    _report(args, path, done, notes, changed=result.changed, mode=args.mode)


def _uninstall(args: argparse.Namespace) -> None:
    from vmm_msi.qemuhook import script

    changed = script.uninstall(args.hooks_dir, dry_run=args.dry_run)
    done = "removed" if changed else "is not installed"
    if changed and args.dry_run:
        done = "would be removed"
    _report(args, script.script_path(args.hooks_dir), done, [], changed=changed, mode=None)


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
        document: HookDocument = {
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
    records: list[RunRecord] = []
    try:
        records = run_records.read_all(run_records.RUN_RECORDS)
    except OSError as error:
        notes.append(
            f"reading the calls in {run_records.RUN_RECORDS}: {error.strerror}; root can read them"
        )
    if args.format == "json":
        _print_status(installed, records, notes)
        return
    if installed is None:
        print_line(f"{script.script_path(args.hooks_dir)}: is not installed")
    else:
        print_line(f"{installed.path}: is installed, in mode {installed.mode}")
        print_line(f"vmm-msi {installed.version}, run by {installed.interpreter}")
    for record in records:
        print_line()
        print_line(f"{record.guest} ({record.uuid})")
        for call in record.steps:
            extra = "" if call.extra == "-" else f" ({call.extra})"
            refused = ", refused" if call.refused else ""
            print_line(f"  {call.time} {call.operation}{extra}{refused}")
            print_lines(f"      {problem}" for problem in call.problems)
    print_lines(f"note: {note}" for note in notes)


def _notes(installed: InstalledScript) -> list[str]:
    notes = []
    if installed.weakness:
        notes.append(
            f"libvirt runs the hook as root, and {installed.weakness}; install vmm-msi where only "
            "root may write"
        )
    if installed.works is None:
        notes.append(
            f"the hook runs {installed.interpreter}, which this command does not run; use that "
            "installation's vmm-msi hook status"
        )
    elif not installed.works:
        notes.append(
            f"{installed.interpreter} does not run or cannot import vmm-msi, so every guest starts "
            "unchecked; fix it with vmm-msi hook install"
        )
    elif not installed.in_step:
        notes.append(
            "the script differs from the one that this vmm-msi would install; update it with "
            "vmm-msi hook install"
        )
    return notes


def _print_status(
    installed: InstalledScript | None, records: Sequence[RunRecord], notes: Sequence[str]
) -> None:
    import dataclasses

    script = None
    if installed is not None:
        script = {**dataclasses.asdict(installed), "path": str(installed.path)}
    document = {
        "schema": 1,
        "installed": script,
        "guests": [dataclasses.asdict(record) for record in records],
        "notes": list(notes),
    }
    print_json(document)
