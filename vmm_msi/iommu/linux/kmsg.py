"""The kernel's log: where faults go that no guest is told of.

Linux ``arm_smmu_handle_event`` gives stage 1 events of a device with a vDEVICE to the vEVENTQ;
stage 2 events and those of other devices are logged by ``arm_smmu_dump_event``, 10 in 5 s at most
(``DEFAULT_RATELIMIT_BURST``).
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.host.files.kernel_log import KMSG, records
from vmm_msi.iommu.event_log import EventReader
from vmm_msi.iommu.smmu_events import SmmuEvent, decode

if TYPE_CHECKING:
    from collections.abc import Iterator

_BURST = 10
#: DEFAULT_RATELIMIT_INTERVAL is 5 s; and a bit for the clocks.
_INTERVAL_S = 5.2


class KernelLog:
    """SMMU events in the kernel's log from now on; needs the right to read /dev/kmsg."""

    def __init__(self) -> None:
        try:
            self._fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise BackendError(
                error.errno or errno.EIO,
                f"opening {KMSG}: {error.strerror}; stage 2 faults are told there alone, and "
                "reading it takes root (CAP_SYSLOG)",
            ) from error
        self._reader = EventReader()
        #: When the last events were logged or read, by CLOCK_MONOTONIC.
        self._seen: deque[float] = deque(maxlen=_BURST)
        # Those that were logged before count for the limit too. Their time is by another clock,
        # which goes apart from this one slowly.
        for logged, _words in self._read():
            self._seen.append(min(logged, time.monotonic()))
        self._reader.clear()

    def fileno(self) -> int:
        """Return the file descriptor, for poll."""
        return self._fd

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def wait_for_room(self) -> None:
        """Wait until the next event would be logged and not be counted away."""
        if len(self._seen) == _BURST:
            time.sleep(max(0.0, self._seen[0] + _INTERVAL_S - time.monotonic()))

    def events(self) -> list[SmmuEvent]:
        """Return the events that were logged since the last call, of the kinds that are known."""
        found: list[SmmuEvent] = []
        for _logged, words in self._read():
            self._seen.append(time.monotonic())
            # ValueError: an event of the SMMU's maker, or of a later architecture.
            with suppress(ValueError):
                found.append(decode(words))
        return found

    def _read(self) -> Iterator[tuple[float, list[int]]]:
        """Yield when each event was logged, by the log's clock in seconds, and its words."""
        for record in records(self._fd):
            if record is None:
                self._reader.clear()
                continue
            words = self._reader.feed(record)
            if words is not None:
                yield int(record.split(b",", 3)[2]) / 1e6, words
