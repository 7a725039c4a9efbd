"""Read the kernel's log, and select its lines about SMMUs, ITSes and VFIO.

Records have the form of Linux ``Documentation/ABI/testing/dev-kmsg``.
"""

from __future__ import annotations

import os
import re
from collections import deque
from typing import TYPE_CHECKING

from vmm_msi.host.files import UnreadableError, text
from vmm_msi.host.files.capture_paths import KERNEL_LOG
from vmm_msi.host.files.folder import FolderTree

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_msi.host.files import HostTree

KMSG = "/dev/kmsg"
#: Lines that are kept from the beginning of the log, where drivers report their hardware, and from
#: its end, where faults are.
MAX_LINES = 2000
#: Limit of records to read: a log of 16 MiB has about 200,000.
_MAX_RECORDS = 1_000_000
#: Longest record in bytes (``PRINTK_MESSAGE_MAX`` is 2048).
_RECORD = 8192

#: The beginnings of the lines that are kept: the prefixes of Linux ``drivers/iommu``,
#: ``drivers/irqchip`` (GIC and ITS), ``drivers/vfio``, ``drivers/acpi/arm64/iort.c`` and
#: ``virt/kvm``.
PREFIXES = (
    "ACPI: IORT",
    "GIC",
    "ITS",
    "VFIO",
    "arm-smmu",
    "iommu",
    "kvm",
    "vfio",
)
_GROUPS = re.compile(r"\S+ \S+: (?:Adding to|Removing from) iommu group \d+")


def records(descriptor: int) -> Iterator[bytes | None]:
    """Yield the records that /dev/kmsg has now; None for records that were overwritten.

    :param descriptor: of /dev/kmsg, open and non-blocking.
    """
    while True:
        try:
            yield os.read(descriptor, _RECORD)
        except BlockingIOError:
            return
        except BrokenPipeError:
            # The next read starts with the oldest record.
            yield None


def kernel_message(record: bytes) -> str:
    """Return the message of a record; empty if the kernel did not write it.

    Programs can write to the log too, as another facility.
    """
    head, _, body = record.partition(b";")
    priority = head.partition(b",")[0]
    if not priority.isdigit() or int(priority) >> 3:
        return ""
    return body.partition(b"\n")[0].decode("utf-8", "replace")


def _time_us(record: bytes) -> int:
    """Return when the kernel logged a record, in microseconds since boot."""
    time = record.partition(b";")[0].split(b",", 3)[2:3]
    return int(time[0]) if time and time[0].isdigit() else 0


def select(log: Iterable[bytes | None], since_us: int = 0) -> list[str]:
    """Return the lines to keep: those of the kernel itself with a known prefix.

    :param log: the records.
    :param since_us: leave out earlier records, in microseconds since boot.
    """
    first: list[str] = []
    last: deque[str] = deque(maxlen=MAX_LINES)
    for number, record in enumerate(log):
        if number >= _MAX_RECORDS:
            break
        if record is None or _time_us(record) < since_us:
            continue
        line = kernel_message(record)
        if line.startswith(PREFIXES) or _GROUPS.match(line):
            (first if len(first) < MAX_LINES else last).append(line)
    return [*first, *last]


def kernel_log(tree: HostTree, *, since_cleared: bool = False, since_us: int = 0) -> list[str]:
    """Return the lines of the kernel's log about SMMUs, ITSes and VFIO.

    :param since_cleared: leave out lines from before the last ``dmesg --clear``; ignored for a
        capture, which does not record that.
    :param since_us: leave out earlier lines, in microseconds since boot; ignored for a capture.
    :return: empty if the tree is neither a capture nor this machine.
    :raise UnreadableError: when it cannot be read, which requires root (CAP_SYSLOG).
    """
    captured = text(tree, KERNEL_LOG)
    if captured is not None:
        return captured.splitlines()
    if not (isinstance(tree, FolderTree) and tree.is_this_machine):
        return []
    try:
        descriptor = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    except OSError as failure:
        raise UnreadableError(tree.source, KMSG, failure.strerror or str(failure)) from failure
    try:
        if since_cleared:
            os.lseek(descriptor, 0, os.SEEK_DATA)
        return select(records(descriptor), since_us)
    except OSError as failure:
        raise UnreadableError(tree.source, KMSG, failure.strerror or str(failure)) from failure
    finally:
        os.close(descriptor)
