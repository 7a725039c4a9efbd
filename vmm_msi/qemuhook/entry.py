"""What the installed script starts for a guest of ours: look, write down, refuse or let start."""

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

#: Refuse to start a guest that would not work, or only write down why it would not.
MODES = ("check", "record")

#: Exit status for a refusal. The script makes 1 of it, and 0 of any other: what fails in here, or
#: keeps this from being run at all, must not keep a guest from starting.
REFUSED = 3

# src/util/virhook.c virHookQemuOp. When one of the first three fails, libvirt starts no guest;
# when reconnect fails, it kills one that runs.
_LOOKED_AT = ("prepare", "restore", "migrate")
_NOTED = (*_LOOKED_AT, "start", "started", "stopped", "release", "reconnect", "attach")

_LINE = 1000


def main() -> None:
    """Run with the arguments of this process: the mode and libvirt's own four."""
    sys.exit(run(sys.argv[1:]))


def run(
    words: Sequence[str],
    stdin: int = 0,
    devices: Path = preflight.DEVICES,
    journals: Path = run_records.JOURNALS,
) -> int:
    """Handle one call of the hook; say on standard error why it is refused, and print nothing.

    libvirt would take what is printed for the XML of the guest.

    :param words: the mode, GUEST, OPERATION, SUB-OPERATION and EXTRA; what they should not be is
        passed over.
    :param stdin: descriptor to read the domain XML from.
    :param devices: the folder with the host's PCI devices.
    :param journals: the folder for what is written down.
    :return: :data:`REFUSED`, or 0 in every other case.
    """
    if len(words) != 1 + 4 or words[0] not in MODES or words[2] not in _NOTED:
        return 0
    mode, guest, operation, _sub_operation, extra = words
    data = _read(stdin)
    if NAMESPACE_BASE.encode() not in data:
        return 0
    try:
        domain = DomainXml.parse(data, f"guest {guest}")
    except DomainXmlError:
        return 0  # so it is not known to be ours
    problems: list[str] = []
    try:
        record = read_record(domain)
        if record is None:
            return 0
        if operation in _LOOKED_AT:
            problems = preflight.problems(domain, record, devices)
    except DomainXmlError as error:
        problems = [str(error)] if operation in _LOOKED_AT else []
    refused = bool(problems) and mode == "check"
    step = run_records.Step(run_records.now(), operation, extra, tuple(problems), refused)
    with contextlib.suppress(OSError):
        run_records.note((domain.uuid or "").strip().lower(), domain.name, step, journals)
    if not refused:
        return 0
    line = f"vmm-msi hook: guest {domain.name}: {'; '.join(problems)}"
    with contextlib.suppress(OSError):
        print_error(printable(line)[:_LINE])
    return REFUSED


def _read(stdin: int) -> bytes:
    """Return what is on standard input, nothing where that cannot be domain XML."""
    data = b""
    with contextlib.suppress(OSError):
        while len(data) <= MAX_BYTES and (piece := os.read(stdin, 1 << 16)):
            data += piece
    return data if len(data) <= MAX_BYTES else b""
