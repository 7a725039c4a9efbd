"""What the service counts, whether or not anybody asks for it."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Upper bounds of the buckets for the time of a reconcile, in seconds; the last has none.
BUCKETS_S = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


@dataclass(frozen=True)
class Numbers:
    """The numbers of one connection at one moment.

    :param events: by kind of event.
    :param failures: by what failed: ``connect`` or ``guest``.
    :param buckets: reconciles by :data:`BUCKETS_S`, one more for those that took longer.
    :param seconds: what all reconciles took together.
    :param outcomes: devices that are bound now, by outcome.
    """

    up: bool
    guests: int
    events: Mapping[str, int]
    failures: Mapping[str, int]
    binds: int
    unbinds: int
    reconnects: int
    buckets: tuple[int, ...]
    seconds: float
    outcomes: Mapping[str, int]


@dataclass
class Statistics:
    """Counts for one connection; its worker and libvirt's event loop count, others read."""

    up: bool = False
    _events: Counter[str] = field(default_factory=Counter)
    _failures: Counter[str] = field(default_factory=Counter)
    _outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    _binds: int = 0
    _unbinds: int = 0
    _reconnects: int = 0
    _buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    _seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def event(self, kind: str) -> None:
        """Count an event."""
        with self._lock:
            self._events[kind] += 1

    def failure(self, what: str) -> None:
        """Count a failure."""
        with self._lock:
            self._failures[what] += 1

    def changed(self, *, binds: int = 0, unbinds: int = 0) -> None:
        """Count devices that were bound and unbound."""
        with self._lock:
            self._binds += binds
            self._unbinds += unbinds

    def reconnected(self) -> None:
        """Count a connection that is back."""
        with self._lock:
            self._reconnects += 1

    def reconciled(self, seconds: float) -> None:
        """Count a reconcile."""
        with self._lock:
            self._buckets[bisect_left(BUCKETS_S, seconds)] += 1
            self._seconds += seconds

    def guest(self, uuid: str, outcomes: Counter[str] | None) -> None:
        """Set the outcomes of a guest's devices; None when it has none any more."""
        with self._lock:
            if outcomes is None:
                self._outcomes.pop(uuid, None)
            else:
                self._outcomes[uuid] = outcomes

    def numbers(self) -> Numbers:
        """Return all of it, of one moment."""
        with self._lock:
            outcomes: Counter[str] = Counter()
            for each in self._outcomes.values():
                outcomes.update(each)
            return Numbers(
                up=self.up,
                guests=len(self._outcomes),
                events=dict(self._events),
                failures=dict(self._failures),
                binds=self._binds,
                unbinds=self._unbinds,
                reconnects=self._reconnects,
                buckets=tuple(self._buckets),
                seconds=self._seconds,
                outcomes=dict(outcomes),
            )
