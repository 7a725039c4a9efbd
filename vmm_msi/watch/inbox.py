"""What a worker is to look at next: bounded, and never in the way of who puts something in."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from vmm_msi.domxml.metadata import NAMESPACE_BASE
from vmm_msi.libvirt_driver.event_loop import GuestEvent

if TYPE_CHECKING:
    from vmm_msi.watch.statistics import Statistics

#: Guests that may wait at once; with more, all are looked at.
LIMIT = 1024

# They change the definition, not what runs.
_IGNORED = {GuestEvent.DEFINED, GuestEvent.UNDEFINED}


class Order(Enum):
    """What concerns more than one guest."""

    STOP = auto()
    LOST = auto()
    RECONCILE = auto()
    #: The same, since there were more events than could be kept.
    OVERFLOW = auto()


@dataclass(frozen=True, slots=True)
class Look:
    """Look at one guest.

    :param rebooted: it was reset.
    """

    uuid: str
    rebooted: bool


class Inbox:
    """Orders and guests; many events of one guest are one look at it."""

    def __init__(self, statistics: Statistics, limit: int = LIMIT) -> None:
        self._statistics = statistics
        self._limit = limit
        self._changed = threading.Condition()
        self._orders: dict[Order, None] = {}
        self._guests: dict[str, bool] = {}

    def guest(self, event: GuestEvent, uuid: str, namespace: str) -> None:
        """Put in an event of a guest; see :class:`vmm_msi.libvirt_driver.event_loop.Sink`."""
        self._statistics.event(event.value)
        if event in _IGNORED:
            return
        if event is GuestEvent.METADATA_CHANGED and not namespace.startswith(NAMESPACE_BASE):
            return
        self.look(uuid, rebooted=event is GuestEvent.REBOOTED)

    def look(self, uuid: str, *, rebooted: bool = False) -> None:
        """Put in a guest."""
        with self._changed:
            if len(self._guests) >= self._limit and uuid not in self._guests:
                # A reconcile finds all by itself but who was reset.
                self._guests = {uuid: True for uuid, reset in self._guests.items() if reset}
                if len(self._guests) >= self._limit:
                    self._guests.clear()
                self._orders[Order.OVERFLOW] = None
            self._guests[uuid] = rebooted or self._guests.get(uuid, False)
            self._changed.notify()

    def closed(self) -> None:
        """Put in that the connection is lost."""
        self._order(Order.LOST)

    def reconcile(self) -> None:
        """Put in a reconcile; a worker that waits to connect again does so at once."""
        self._order(Order.RECONCILE)

    def stop(self) -> None:
        """Put in that this is all."""
        self._order(Order.STOP)

    def connected(self) -> None:
        """Forget that an earlier connection was lost, and what the reconcile at hand does."""
        with self._changed:
            for order in (Order.LOST, Order.RECONCILE, Order.OVERFLOW):
                self._orders.pop(order, None)

    def is_stopped(self) -> bool:
        """Tell whether this is all."""
        with self._changed:
            return Order.STOP in self._orders

    def take(self, seconds: float | None) -> Order | Look | None:
        """Return what is next: orders first; None when nothing came in that time.

        :param seconds: how long to wait; None for as long as it takes.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while True:
                for order in Order:
                    if order in self._orders:
                        if order is not Order.STOP:
                            del self._orders[order]
                        return order
                if self._guests:
                    uuid = next(iter(self._guests))
                    return Look(uuid, self._guests.pop(uuid))
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)

    def pause(self, seconds: float) -> None:
        """Wait, unless it is to stop or to reconcile, which is what comes after a pause."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while Order.STOP not in self._orders and Order.RECONCILE not in self._orders:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            self._orders.pop(Order.RECONCILE, None)

    def _order(self, order: Order) -> None:
        with self._changed:
            self._orders[order] = None
            self._changed.notify()
