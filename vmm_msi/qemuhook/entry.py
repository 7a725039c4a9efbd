"""Handle one call of the hook for a vmm-msi guest: check it, store the call, refuse or allow it."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.metadata import NAMESPACE_BASE, read_record
from vmm_msi.domxml.parse import MAX_BYTES
from vmm_msi.errors import DomainXmlError
from vmm_msi.qemuhook import preflight, run_records
from vmm_msi.terminal import print_error, printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmm_msi.host.files import HostTree

#: Refuse to start a guest that has problems, or only record the problems.
MODES = ("check", "record")

#: Exit status of a refusal. The script turns it into 1 and any other status into 0: a failure of
#: the hook itself must not keep a guest from starting.
REFUSED = 3

# src/util/virhook.c virHookQemuOp. When one of the first three fails, libvirt does not start the
# guest; when reconnect fails, it kills a running guest.
_CHECKED = ("prepare", "restore", "migrate")
_RECORDED = (*_CHECKED, "start", "started", "stopped", "release", "reconnect", "attach")

_LINE = 1000


def main() -> None:
    """Run with the arguments of this process: the mode, then libvirt's four arguments."""
    sys.exit(run(sys.argv[1:]))


def run(
    arguments: Sequence[str],
    stdin: int = 0,
    tree: HostTree | None = None,
    records: Path = run_records.RUN_RECORDS,
) -> int:
    """Handle one call of the hook, and report a refusal on standard error.

    Standard output stays empty: libvirt would read it as the guest's new XML.

    :param arguments: the mode, GUEST, OPERATION, SUB-OPERATION and EXTRA; invalid ones are
        ignored.
    :param stdin: descriptor to read the domain XML from.
    :param tree: the host's files; the default is this machine's.
    :param records: the folder of the run records.
    :return: :data:`REFUSED`, or 0 in every other case.
    """
    if len(arguments) != 1 + 4 or arguments[0] not in MODES or arguments[2] not in _RECORDED:
        return 0
    mode, guest, operation, _sub_operation, extra = arguments
    data = _read(stdin)
    if NAMESPACE_BASE.encode() not in data:
        return 0
    try:
        domain = DomainXml.parse(data, f"guest {guest}")
    except DomainXmlError:
        return 0  # it may belong to another program
    problems: list[str] = []
    try:
        record = read_record(domain)
        if record is None:
            return 0
        if operation in _CHECKED:
            problems = preflight.problems(domain, record, tree)
    except DomainXmlError as error:
        problems = [str(error)] if operation in _CHECKED else []
    refused = bool(problems) and mode == "check"
    call = run_records.HookCall(run_records.now(), operation, extra, tuple(problems), refused)
    with contextlib.suppress(OSError):
        run_records.add_call((domain.uuid or "").strip().lower(), domain.name, call, records)
    if not refused:
        return 0
    line = f"vmm-msi hook: guest {domain.name}: {'; '.join(problems)}"
    with contextlib.suppress(OSError):
        print_error(printable(line)[:_LINE])
    return REFUSED


def _read(stdin: int) -> bytes:
    """Return the data on standard input; nothing if it is too large for domain XML."""
    data = b""
    with contextlib.suppress(OSError):
        while len(data) <= MAX_BYTES and (piece := os.read(stdin, 1 << 16)):
            data += piece
    return data if len(data) <= MAX_BYTES else b""
