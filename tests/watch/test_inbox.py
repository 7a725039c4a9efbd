"""What a worker is to look at: merged, bounded, in order."""

from __future__ import annotations

import threading
import time

from vmm_msi.domxml import bound_metadata, metadata
from vmm_msi.libvirt_driver.event_loop import GuestEvent
from vmm_msi.watch.inbox import Inbox, Look, Order
from vmm_msi.watch.statistics import Statistics
from vmm_msi.watch.worker import FIRST_DELAY_S, LAST_DELAY_S, Backoff


def everything(inbox):
    found = []
    while (work := inbox.take(0)) is not None:
        found.append(work)
    return found


def test_many_events_of_one_guest_are_one_look():
    statistics = Statistics()
    inbox = Inbox(statistics)
    for event in (GuestEvent.STARTED, GuestEvent.REBOOTED, GuestEvent.STOPPED, GuestEvent.CRASHED):
        inbox.guest(event, "a", "")
    inbox.guest(GuestEvent.DEVICE_ADDED, "b", "")
    assert everything(inbox) == [Look("a", rebooted=True), Look("b", rebooted=False)]
    counted = statistics.numbers().events
    assert counted == dict.fromkeys(
        ["started", "rebooted", "stopped", "crashed", "device-added"], 1
    )


def test_only_what_changes_a_run_is_looked_at():
    inbox = Inbox(Statistics())
    inbox.guest(GuestEvent.DEFINED, "a", "")
    inbox.guest(GuestEvent.UNDEFINED, "a", "")
    for namespace in (bound_metadata.NAMESPACE, "urn:other", ""):
        inbox.guest(GuestEvent.METADATA_CHANGED, "a", namespace)
    assert everything(inbox) == []
    inbox.guest(GuestEvent.METADATA_CHANGED, "a", metadata.NAMESPACE)
    assert everything(inbox) == [Look("a", rebooted=False)]


def test_too_many_guests_are_one_reconcile():
    inbox = Inbox(Statistics(), limit=4)
    inbox.look("reset", rebooted=True)
    for number in range(1000):
        inbox.look(f"{number}")
        assert len(inbox._guests) <= 4
    found = everything(inbox)
    assert found[:2] == [Order.OVERFLOW, Look("reset", rebooted=True)]
    assert len(found) <= 5
    for number in range(1000):
        inbox.look(f"{number}", rebooted=True)
        assert len(inbox._guests) <= 4


def test_orders_come_first_and_stop_stays():
    inbox = Inbox(Statistics())
    inbox.look("a")
    inbox.reconcile()
    inbox.closed()
    assert [inbox.take(0), inbox.take(0), inbox.take(0)] == [
        Order.LOST, Order.RECONCILE, Look("a", rebooted=False)
    ]  # fmt: skip
    inbox.closed()
    inbox.reconcile()
    inbox.connected()
    assert inbox.take(0) is None
    inbox.stop()
    assert [inbox.take(0), inbox.take(None)] == [Order.STOP] * 2
    assert inbox.is_stopped()


def test_a_pause_ends_early_and_takes_the_reconcile_with_it():
    inbox = Inbox(Statistics())
    begin = time.monotonic()
    threading.Timer(0.05, inbox.reconcile).start()
    inbox.pause(60)
    assert time.monotonic() - begin < 30
    assert inbox.take(0) is None
    inbox.pause(0.05)
    inbox.stop()
    inbox.pause(60)
    assert time.monotonic() - begin < 30


def test_delays_grow_to_a_minute_and_begin_again():
    backoff = Backoff()
    delays = [backoff.next() for _ in range(9)]
    limits = [2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert all(limit / 2 <= delay <= limit for delay, limit in zip(delays, limits, strict=True))
    assert min(delays) >= FIRST_DELAY_S
    assert max(delays) <= LAST_DELAY_S
    assert len(set(delays)) == len(delays)
    backoff.reset()
    assert FIRST_DELAY_S <= backoff.next() <= 2 * FIRST_DELAY_S
