"""Run the service: one worker per connection, signals, systemd, metrics; or reconcile once."""

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
from vmm_msi.quantity import quantity
from vmm_msi.watch.metrics import Endpoint
from vmm_msi.watch.reconcile import Reconciler
from vmm_msi.watch.service_log import LogEvent, log_event
from vmm_msi.watch.statistics import Statistics
from vmm_msi.watch.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm_msi.host.msi_bindings import MsiBindingsFile
    from vmm_msi.watch.binder import SimBinder
    from vmm_msi.watch.metrics import ListenAddress
    from vmm_msi.watch.systemd_notify import Notifier

#: Time without progress after which the service is stuck, unless systemd sets a watchdog. It is
#: longer than the time in which libvirt's keepalive detects a dead connection.
STUCK_S = 60.0

# Time after which the service reports that it is ready although a connection is not up.
_READY_S = 10.0
_STOP_S = 10.0
_TICK_S = 5.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class ServiceOptions:
    """The options of the service.

    :param uris: the connections to serve.
    :param load: reads configuration and plugins, at the start and for each SIGHUP.
    :param metrics: the address of the metrics endpoint; None for no endpoint.
    :param file: the kernel's file of guest MSI bindings; None to open this machine's.
    """

    uris: Sequence[str]
    load: Callable[[], SimBinder]
    metrics: ListenAddress | None = None
    file: MsiBindingsFile | None = None


def reconcile_once(options: ServiceOptions) -> None:
    """Reconcile every connection once, one after the other.

    :raise VmmMsiError: the first failure, after every connection was tried.
    """
    binder = options.load()
    first: VmmMsiError | None = None
    for uri in options.uris:
        reconciler = Reconciler(uri, Statistics(), file=options.file)
        failure: VmmMsiError | None
        try:
            with connect(uri) as connection:
                reconciler.reconcile(connection, binder)
            failure = reconciler.failure
        except HypervisorError as error:
            log_event(LogEvent.CONNECT_FAILED, logging.WARNING, uri=uri, error=error)
            failure = error
        first = first or failure
    if first is not None:
        raise first


class Service:
    """The service. Create and run it in the main thread, which receives the signals.

    :param notifier: notifies systemd.
    :raise VmmMsiError: when the configuration cannot be used.
    """

    def __init__(self, options: ServiceOptions, notifier: Notifier) -> None:
        self._options = options
        self._notifier = notifier
        self._binder = options.load()
        self._limit = notifier.watchdog or STUCK_S
        self._workers = [Worker(uri, lambda: self._binder, options.file) for uri in options.uris]
        self._loop = EventLoop()
        self._ready = False

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; the devices of running guests stay bound.

        :raise VmmMsiError: when the endpoint cannot listen on the address for the metrics.
        """
        with ExitStack() as stack:
            signals = stack.enter_context(_signals())
            if self._options.metrics is not None:
                snapshots = {worker.uri: worker.statistics.snapshot for worker in self._workers}
                stack.enter_context(
                    Endpoint(self._options.metrics, snapshots, lambda: not self._stuck())
                )
            stack.enter_context(self._loop)
            log_event(LogEvent.SERVICE_STARTED, connections=len(self._workers))
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
                log_event(LogEvent.SERVICE_STOPPING, signal=signal.Signals(number).name)
                return
            self._reload()

    def _report(self, seconds: float) -> None:
        """Report readiness, liveness and status to systemd."""
        if not self._ready and (
            seconds > _READY_S or all(worker.tried.is_set() for worker in self._workers)
        ):
            self._ready = True
            log_event(LogEvent.SERVICE_READY)
            self._notifier.ready()
        stuck = self._stuck()
        if stuck:
            log_event(LogEvent.SERVICE_STUCK, logging.ERROR, what=stuck)
        else:
            self._notifier.alive()
        snapshots = [worker.statistics.snapshot() for worker in self._workers]
        up = sum(snapshot.up for snapshot in snapshots)
        devices = sum(sum(snapshot.outcomes.values()) for snapshot in snapshots)
        guests = sum(snapshot.guests for snapshot in snapshots)
        self._notifier.status(
            f"{up} of {quantity(len(snapshots), 'connection')} up, "
            f"{quantity(devices, 'device')} bound in {quantity(guests, 'guest')}"
        )

    def _stuck(self) -> str:
        """Return the names of the parts that make no progress; empty if all do."""
        if self._loop.age() > max(self._limit, 3 * TICK_S):
            return "libvirt's event loop"
        return ", ".join(worker.uri for worker in self._workers if worker.busy() > self._limit)

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            self._binder = self._options.load()
        except VmmMsiError as error:
            log_event(LogEvent.CONFIG_INVALID, logging.ERROR, error=error)
        else:
            log_event(LogEvent.CONFIG_RELOADED, file=self._binder.settings.path)
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
    """Queue the signals that arrive during the ``with`` block."""
    received: queue.SimpleQueue[int] = queue.SimpleQueue()
    handlers = {
        number: signal.signal(number, lambda caught, _frame: received.put(caught))
        for number in _SIGNALS
    }
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
