"""The process: one worker per connection, signals, systemd, metrics; and the same once."""

from __future__ import annotations

import logging
import queue
import signal
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.errors import HypervisorError, VmmMsiError
from vmm_msi.libvirt_driver import connect
from vmm_msi.libvirt_driver.event_loop import TICK_S, EventLoop
from vmm_msi.watch.metrics import Endpoint
from vmm_msi.watch.reconcile import Guests
from vmm_msi.watch.service_log import LogEvent, tell
from vmm_msi.watch.statistics import Statistics
from vmm_msi.watch.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm_msi.watch.binder import Binder
    from vmm_msi.watch.metrics import ListenAddress
    from vmm_msi.watch.systemd_notify import Notifier

#: How long a worker or the event loop may be at one thing before the service counts as stuck,
#: where systemd says nothing. Longer than a dead connection takes to be noticed.
STUCK_S = 60.0

# How long a connection is waited for before the service calls itself ready without it.
_READY_S = 10.0
_STOP_S = 10.0
_TICK_S = 5.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Plan:
    """What the service is to do.

    :param load: reads configuration and plugins, at the start and for each SIGHUP.
    :param metrics: where they can be asked for; None for nowhere.
    """

    uris: Sequence[str]
    load: Callable[[], Binder]
    metrics: ListenAddress | None = None


def once(plan: Plan) -> None:
    """Reconcile every connection, one after the other.

    :raise VmmMsiError: the first failure, after everything was tried.
    """
    binder = plan.load()
    first: VmmMsiError | None = None
    for uri in plan.uris:
        guests = Guests(uri, Statistics())
        failure: VmmMsiError | None
        try:
            with connect(uri) as connection:
                guests.reconcile(connection, binder)
            failure = guests.failure
        except HypervisorError as error:
            tell(LogEvent.CONNECT_FAILED, logging.WARNING, uri=uri, error=error)
            failure = error
        first = first or failure
    if first is not None:
        raise first


class Service:
    """The service; made and run in the main thread, which gets the signals.

    :param notifier: tells systemd.
    :raise VmmMsiError: when the configuration or the metrics' address cannot be used.
    """

    def __init__(self, plan: Plan, notifier: Notifier) -> None:
        self._plan = plan
        self._notifier = notifier
        self._binder = plan.load()
        self._limit = notifier.watchdog or STUCK_S
        self._workers = [Worker(uri, lambda: self._binder) for uri in plan.uris]
        self._loop = EventLoop()
        self._ready = False

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; what is bound for guests that run stays bound.

        :raise VmmMsiError: when the metrics' address is taken.
        """
        with ExitStack() as stack:
            signals = stack.enter_context(_signals())
            if self._plan.metrics is not None:
                numbers = {worker.uri: worker.statistics.numbers for worker in self._workers}
                stack.enter_context(
                    Endpoint(self._plan.metrics, numbers, lambda: not self._stuck())
                )
            stack.enter_context(self._loop)
            tell(LogEvent.SERVICE_STARTED, connections=len(self._workers))
            for worker in self._workers:
                worker.start()
            try:
                self._serve(signals)
            finally:
                self._stop()

    def _serve(self, signals: queue.SimpleQueue[int]) -> None:
        begin = time.monotonic()
        tick = min(_TICK_S, self._limit / 4)
        while True:
            for worker in self._workers:
                if worker.error is not None:
                    raise worker.error
            self._report(time.monotonic() - begin)
            try:
                number = signals.get(timeout=tick if self._ready else 0.05)
            except queue.Empty:
                continue
            if number != signal.SIGHUP:
                tell(LogEvent.SERVICE_STOPPING, signal=signal.Signals(number).name)
                return
            self._reload()

    def _report(self, seconds: float) -> None:
        """Tell systemd how it goes."""
        if not self._ready and (
            seconds > _READY_S or all(worker.tried.is_set() for worker in self._workers)
        ):
            self._ready = True
            tell(LogEvent.SERVICE_READY)
            self._notifier.ready()
        stuck = self._stuck()
        if stuck:
            tell(LogEvent.SERVICE_STUCK, logging.ERROR, what=stuck)
        else:
            self._notifier.alive()
        numbers = [worker.statistics.numbers() for worker in self._workers]
        up = sum(each.up for each in numbers)
        devices = sum(sum(each.outcomes.values()) for each in numbers)
        self._notifier.status(
            f"{up} of {len(numbers)} connections up, {devices} devices bound in "
            f"{sum(each.guests for each in numbers)} guests"
        )

    def _stuck(self) -> str:
        """Say what makes no progress; nothing where all does."""
        if self._loop.age() > max(self._limit, 3 * TICK_S):
            return "libvirt's event loop"
        return ", ".join(worker.uri for worker in self._workers if worker.busy() > self._limit)

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            self._binder = self._plan.load()
        except VmmMsiError as error:
            tell(LogEvent.CONFIG_INVALID, logging.ERROR, error=error)
        else:
            tell(LogEvent.CONFIG_RELOADED, file=self._binder.settings.path)
        for worker in self._workers:
            worker.inbox.reconcile()
        self._notifier.ready()

    def _stop(self) -> None:
        self._notifier.stopping()
        for worker in self._workers:
            worker.inbox.stop()
        deadline = time.monotonic() + _STOP_S
        for worker in self._workers:
            worker.stop(max(0.0, deadline - time.monotonic()))


@contextmanager
def _signals() -> Iterator[queue.SimpleQueue[int]]:
    """Give the numbers of signals that come in during the ``with`` block."""
    came: queue.SimpleQueue[int] = queue.SimpleQueue()
    before = {
        number: signal.signal(number, lambda caught, _frame: came.put(caught))
        for number in _SIGNALS
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
