"""Keep one connection open, reopen it when it is lost, and reconcile its guests."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING

from vmm_msi.errors import HypervisorError
from vmm_msi.libvirt_driver import connect
from vmm_msi.libvirt_driver.event_loop import subscribed
from vmm_msi.watch.inbox import GuestCheck, Inbox, WorkerCommand
from vmm_msi.watch.reconcile import Reconciler
from vmm_msi.watch.service_log import LogEvent, log_event
from vmm_msi.watch.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_msi.host.msi_bindings import MsiBindingsFile
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.watch.binder import SimBinder

FIRST_DELAY_S = 1.0
LAST_DELAY_S = 60.0

_random = random.SystemRandom()


class Backoff:
    """Exponential backoff from 2 s to 60 s with 50 % jitter."""

    def __init__(self) -> None:
        self._limit = 2 * FIRST_DELAY_S

    def next(self) -> float:
        """Return the next delay, in seconds."""
        delay = _random.uniform(self._limit / 2, self._limit)
        self._limit = min(2 * self._limit, LAST_DELAY_S)
        return delay

    def reset(self) -> None:
        """Start again with the shortest delay."""
        self._limit = 2 * FIRST_DELAY_S


class Worker:
    """Serve one connection in a thread. Start the event loop first.

    :param binder: returns the current binder; a reload of the configuration replaces it.
    :param file: the kernel's file of guest MSI bindings; None to open this machine's.
    """

    def __init__(
        self, uri: str, binder: Callable[[], SimBinder], file: MsiBindingsFile | None = None
    ) -> None:
        self.uri = uri
        self.statistics = Statistics()
        self.inbox = Inbox(self.statistics)
        self.reconciler = Reconciler(uri, self.statistics, self._beat, file)
        #: Set when the first reconcile is done or the first attempt to connect failed.
        self.tried = threading.Event()
        #: The exception that ended the thread.
        self.error: BaseException | None = None
        self._binder = binder
        self._busy_since: float | None = None
        self._retry: dict[str, bool] = {}
        self._thread = threading.Thread(target=self._run, name=f"watch {uri}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Stop the thread after the current guest; return whether it stopped in time."""
        self.inbox.stop()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def busy(self) -> float:
        """Return how many seconds the current guest has taken; 0 while the worker waits."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _beat(self) -> None:
        self._busy_since = time.monotonic()

    def _run(self) -> None:
        try:
            self._keep_connected()
        except BaseException as error:  # noqa: BLE001 - the service raises it
            self.error = error
        finally:
            self.tried.set()

    def _keep_connected(self) -> None:
        backoff = Backoff()
        connections = 0
        while not self.inbox.is_stopped():
            up = False
            delay = 0.0
            try:
                # Connecting does not count as busy: its duration depends on libvirt alone.
                with connect(self.uri) as connection, subscribed(connection, self.inbox):
                    self.inbox.connected()
                    self._beat()
                    up = self.statistics.up = True
                    connections += 1
                    if connections > 1:
                        self.statistics.reconnected()
                    log_event(LogEvent.CONNECTED, uri=self.uri)
                    self._reconcile(connection)
                    backoff.reset()
                    self.tried.set()
                    self._serve(connection)
                    self._busy_since = None
            except HypervisorError as error:
                if self.inbox.is_stopped():
                    return
                delay = backoff.next()
                self.statistics.failure("connect")
                log_event(
                    LogEvent.CONNECTION_LOST if up else LogEvent.CONNECT_FAILED,
                    logging.WARNING,
                    uri=self.uri,
                    error=error,
                    retry_seconds=round(delay, 1),
                )
            finally:
                self.statistics.up = False
                self._busy_since = None
                self.tried.set()
            if not self.inbox.is_stopped():
                self.inbox.pause(delay)

    def _serve(self, connection: Connection) -> None:
        """Process the inbox until a stop is requested.

        :raise HypervisorError: when the connection is lost.
        """
        backoff = Backoff()
        due: float | None = None
        while True:
            if self._retry and due is None:
                due = time.monotonic() + backoff.next()
            elif not self._retry:
                due = None
                backoff.reset()
            self._busy_since = None
            waits = [] if due is None else [max(0.0, due - time.monotonic())]
            look = self.reconciler.wait()
            if look is not None:
                waits.append(look)
            wait = min(waits, default=None)
            item = self.inbox.get(wait)
            self._beat()
            match item:
                case WorkerCommand.STOP:
                    return
                case WorkerCommand.CONNECTION_LOST:
                    if not connection.is_alive():
                        raise HypervisorError(f"watching {self.uri}: libvirt closed the connection")
                case WorkerCommand.OVERFLOW:
                    log_event(LogEvent.EVENTS_OVERFLOWED, logging.WARNING, uri=self.uri)
                    self._reconcile(connection)
                case WorkerCommand.RECONCILE:
                    self._reconcile(connection)
                case GuestCheck(uuid, rebooted):
                    self._check(connection, uuid, rebooted=rebooted)
                case None if due is not None and due <= time.monotonic():
                    due = None
                    for uuid, rebooted in list(self._retry.items()):
                        self._check(connection, uuid, rebooted=rebooted)
            if self.reconciler.wait() == 0.0:
                self.reconciler.follow(connection, self._binder())

    def _check(self, connection: Connection, uuid: str, *, rebooted: bool) -> None:
        rebooted = self._retry.pop(uuid, False) or rebooted
        # Kept until the check is done, so that it survives a lost connection.
        self._retry[uuid] = rebooted
        if self.reconciler.check(connection, self._binder(), uuid, rebooted=rebooted):
            del self._retry[uuid]

    def _reconcile(self, connection: Connection) -> None:
        rebooted = {uuid for uuid, reset in self._retry.items() if reset}
        retry = self.reconciler.reconcile(connection, self._binder(), rebooted)
        self._retry = {uuid: uuid in rebooted for uuid in retry}
