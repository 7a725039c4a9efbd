"""The kernel's log: its records, and the lines of it that are about SMMUs, ITSes and VFIO.

Records are as in Linux ``Documentation/ABI/testing/dev-kmsg``.
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
#: Lines that are kept from the begin of the log, where drivers say what they found, and from its
#: end, where faults are.
MAX_LINES = 2000
#: Records that are read: a log of 16 MiB has about 200,000.
_MAX_RECORDS = 1_000_000
#: Longest record in bytes (``PRINTK_MESSAGE_MAX`` is 2048).
_RECORD = 8192

#: How lines that are kept begin: the prefixes of Linux ``drivers/iommu``, ``drivers/irqchip``
#: (GIC and ITS), ``drivers/vfio``, ``drivers/acpi/arm64/iort.c`` and ``virt/kvm``.
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
    """Yield the records that /dev/kmsg has now; None where some were overwritten before.

    :param descriptor: open, and does not block.
    """
    while True:
        try:
            yield os.read(descriptor, _RECORD)
        except BlockingIOError:
            return
        except BrokenPipeError:
            # The next read begins with the oldest there is.
            yield None


def kept(found: Iterable[bytes | None]) -> list[str]:
    """Return the lines of records that are kept: those of the kernel itself, with a known prefix.

    Programs can write to the log, too, as another facility.
    """
    first: list[str] = []
    last: deque[str] = deque(maxlen=MAX_LINES)
    for number, record in enumerate(found):
        if number >= _MAX_RECORDS:
            break
        head, _, body = (record or b"").partition(b";")
        priority = head.partition(b",")[0]
        if not priority.isdigit() or int(priority) >> 3:
            continue
        line = body.partition(b"\n")[0].decode("utf-8", "replace")
        if line.startswith(PREFIXES) or _GROUPS.match(line):
            (first if len(first) < MAX_LINES else last).append(line)
    return [*first, *last]


def kernel_log(tree: HostTree, *, since_cleared: bool = False) -> list[str]:
    """Return what the kernel's log says of SMMUs, ITSes and VFIO.

    :param since_cleared: leave out what was there when somebody last said ``dmesg --clear``; a
        capture does not tell that.
    :return: nothing where the tree is neither a capture nor this machine.
    :raise UnreadableError: when it cannot be read, which takes root (CAP_SYSLOG).
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
        return kept(records(descriptor))
    except OSError as failure:
        raise UnreadableError(tree.source, KMSG, failure.strerror or str(failure)) from failure
    finally:
        os.close(descriptor)
