"""Count events, binds and failures, for the metrics and the status of the service."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Upper bounds of the histogram of reconcile times, in seconds; a last bucket has no bound.
BUCKETS_S = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


@dataclass(frozen=True)
class Snapshot:
    """The counters and states of one connection at one moment.

    :param up: the connection is up.
    :param guests: number of guests with bound devices.
    :param events: number of events by kind.
    :param failures: number of failures by kind: ``connect`` or ``guest``.
    :param corrections: number of bindings that had another gIOVA than the guest's.
    :param buckets: number of reconciles by the bounds in :data:`BUCKETS_S`, and above the last.
    :param seconds: total time of all reconciles.
    :param outcomes: number of bound devices by outcome.
    """

    up: bool
    guests: int
    events: Mapping[str, int]
    failures: Mapping[str, int]
    binds: int
    unbinds: int
    reconnects: int
    corrections: int
    buckets: tuple[int, ...]
    seconds: float
    outcomes: Mapping[str, int]


@dataclass
class Statistics:
    """Counters of one connection; its worker and libvirt's event loop write, other threads read."""

    up: bool = False
    _events: Counter[str] = field(default_factory=Counter)
    _failures: Counter[str] = field(default_factory=Counter)
    _outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    _binds: int = 0
    _unbinds: int = 0
    _reconnects: int = 0
    _corrections: int = 0
    _buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    _seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def event(self, kind: str) -> None:
        """Count an event."""
        with self._lock:
            self._events[kind] += 1

    def failure(self, kind: str) -> None:
        """Count a failure."""
        with self._lock:
            self._failures[kind] += 1

    def changed(self, *, binds: int = 0, unbinds: int = 0) -> None:
        """Count bound and unbound devices."""
        with self._lock:
            self._binds += binds
            self._unbinds += unbinds

    def reconnected(self) -> None:
        """Count a reconnect."""
        with self._lock:
            self._reconnects += 1

    def corrected(self) -> None:
        """Count a binding that had another gIOVA than the guest's."""
        with self._lock:
            self._corrections += 1

    def reconciled(self, seconds: float) -> None:
        """Count a reconcile that took ``seconds``."""
        with self._lock:
            self._buckets[bisect_left(BUCKETS_S, seconds)] += 1
            self._seconds += seconds

    def guest(self, uuid: str, outcomes: Counter[str] | None) -> None:
        """Set the outcomes of a guest's bound devices; None if no device is bound."""
        with self._lock:
            if outcomes is None:
                self._outcomes.pop(uuid, None)
            else:
                self._outcomes[uuid] = outcomes

    def snapshot(self) -> Snapshot:
        """Return all values at this moment."""
        with self._lock:
            outcomes: Counter[str] = Counter()
            for guest_outcomes in self._outcomes.values():
                outcomes.update(guest_outcomes)
            return Snapshot(
                up=self.up,
                guests=len(self._outcomes),
                events=dict(self._events),
                failures=dict(self._failures),
                binds=self._binds,
                unbinds=self._unbinds,
                reconnects=self._reconnects,
                corrections=self._corrections,
                buckets=tuple(self._buckets),
                seconds=self._seconds,
                outcomes=dict(outcomes),
            )
