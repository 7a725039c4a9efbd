"""The kernel's log: SMMU events that are not reported to a guest.

Linux ``arm_smmu_handle_event`` puts stage 1 events of a device with a vDEVICE into the vEVENTQ;
``arm_smmu_dump_event`` logs stage 2 events and those of other devices, at most 10 in 5 s
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
from vmm_msi.host.files.kernel_log import KMSG, kernel_message, records
from vmm_msi.iommu.event_log import EventReader
from vmm_msi.iommu.smmu_events import SmmuEvent, decode

if TYPE_CHECKING:
    from collections.abc import Iterator

_BURST = 10
#: DEFAULT_RATELIMIT_INTERVAL is 5 s; the rest allows for the difference of the clocks.
_INTERVAL_S = 5.2


class KernelLog:
    """SMMU events in the kernel's log from now on; requires the right to read /dev/kmsg."""

    def __init__(self) -> None:
        try:
            self._fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise BackendError(
                error.errno or errno.EIO,
                f"opening {KMSG}: {error.strerror}; the kernel reports stage 2 faults only "
                "there; run as root (CAP_SYSLOG)",
            ) from error
        self._reader = EventReader()
        #: Times at which the last events were logged or read, by CLOCK_MONOTONIC.
        self._times: deque[float] = deque(maxlen=_BURST)
        # Events that were logged before count for the limit too. Their times are those of another
        # clock, which drifts slowly.
        for logged, _words in self._read():
            self._times.append(min(logged, time.monotonic()))
        self._reader.clear()

    def fileno(self) -> int:
        """Return the file descriptor, for poll."""
        return self._fd

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def wait_for_room(self) -> None:
        """Wait until the kernel's rate limit permits the next event to be logged."""
        if len(self._times) == _BURST:
            time.sleep(max(0.0, self._times[0] + _INTERVAL_S - time.monotonic()))

    def events(self) -> list[SmmuEvent]:
        """Return the events of known kinds that were logged since the last call."""
        events: list[SmmuEvent] = []
        for _logged, words in self._read():
            self._times.append(time.monotonic())
            # ValueError: an implementation-defined event, or one of a later architecture.
            with suppress(ValueError):
                events.append(decode(words))
        return events

    def _read(self) -> Iterator[tuple[float, tuple[int, ...]]]:
        """Yield the time of each event, by the log's clock in seconds, and its words."""
        for record in records(self._fd):
            if record is None:
                self._reader.clear()
                continue
            line = self._reader.line(kernel_message(record))
            if line is not None and line.words:
                yield int(record.split(b",", 3)[2]) / 1e6, line.words
