"""One connection: it is made, lost and made again here, and its guests are looked at."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING

from vmm_msi.errors import HypervisorError
from vmm_msi.libvirt_driver import connect
from vmm_msi.libvirt_driver.event_loop import subscribed
from vmm_msi.watch.inbox import Inbox, Look, Order
from vmm_msi.watch.reconcile import Guests
from vmm_msi.watch.service_log import LogEvent, tell
from vmm_msi.watch.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.watch.binder import Binder

FIRST_DELAY_S = 1.0
LAST_DELAY_S = 60.0

_random = random.SystemRandom()


class Backoff:
    """Delays that grow, each by chance between half and all of what it may be."""

    def __init__(self) -> None:
        self._limit = 2 * FIRST_DELAY_S

    def next(self) -> float:
        """Return the next delay, in seconds."""
        delay = _random.uniform(self._limit / 2, self._limit)
        self._limit = min(2 * self._limit, LAST_DELAY_S)
        return delay

    def reset(self) -> None:
        """Begin again with the shortest."""
        self._limit = 2 * FIRST_DELAY_S


class Worker:
    """A thread for one connection. The event loop must run before it is started.

    :param binder: the one to use now; it may be another one next time.
    """

    def __init__(self, uri: str, binder: Callable[[], Binder]) -> None:
        self.uri = uri
        self.statistics = Statistics()
        self.inbox = Inbox(self.statistics)
        self.guests = Guests(uri, self.statistics, self._beat)
        #: Set when the guests were looked at once, or nobody answered.
        self.tried = threading.Event()
        #: What ended the thread before it was told to stop.
        self.error: BaseException | None = None
        self._binder = binder
        self._busy_since: float | None = None
        self._again: dict[str, bool] = {}
        self._thread = threading.Thread(target=self._run, name=f"watch {uri}", daemon=True)

    def start(self) -> None:
        """Start."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Ask it to stop after the guest at hand; tell whether it did in time."""
        self.inbox.stop()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def busy(self) -> float:
        """Return for how many seconds it has been at the guest at hand; 0 where it waits."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _beat(self) -> None:
        self._busy_since = time.monotonic()

    def _run(self) -> None:
        try:
            self._keep_connected()
        except BaseException as error:  # noqa: BLE001 - the service ends with it
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
                # To connect is to wait for another: not our progress.
                with connect(self.uri) as connection, subscribed(connection, self.inbox):
                    self.inbox.connected()
                    self._beat()
                    up = self.statistics.up = True
                    connections += 1
                    if connections > 1:
                        self.statistics.reconnected()
                    tell(LogEvent.CONNECTED, uri=self.uri)
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
                tell(
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
        """Look at what the inbox has until it is to stop.

        :raise HypervisorError: when the connection is lost.
        """
        backoff = Backoff()
        due: float | None = None
        while True:
            if self._again and due is None:
                due = time.monotonic() + backoff.next()
            elif not self._again:
                due = None
                backoff.reset()
            self._busy_since = None
            wait = None if due is None else max(0.0, due - time.monotonic())
            work = self.inbox.take(wait)
            self._beat()
            match work:
                case Order.STOP:
                    return
                case Order.LOST:
                    if not connection.is_alive():
                        raise HypervisorError(f"watching {self.uri}: libvirt closed the connection")
                case Order.OVERFLOW:
                    tell(LogEvent.EVENTS_OVERFLOWED, logging.WARNING, uri=self.uri)
                    self._reconcile(connection)
                case Order.RECONCILE:
                    self._reconcile(connection)
                case Look(uuid, rebooted):
                    self._look(connection, uuid, rebooted=rebooted)
                case None:
                    due = None
                    for uuid, rebooted in list(self._again.items()):
                        self._look(connection, uuid, rebooted=rebooted)

    def _look(self, connection: Connection, uuid: str, *, rebooted: bool) -> None:
        rebooted = self._again.pop(uuid, False) or rebooted
        # Kept until it is done, so that it outlives a connection that is lost meanwhile.
        self._again[uuid] = rebooted
        if self.guests.look(connection, self._binder(), uuid, rebooted=rebooted):
            del self._again[uuid]

    def _reconcile(self, connection: Connection) -> None:
        rebooted = {uuid for uuid, reset in self._again.items() if reset}
        again = self.guests.reconcile(connection, self._binder(), rebooted)
        self._again = {uuid: uuid in rebooted for uuid in again}
