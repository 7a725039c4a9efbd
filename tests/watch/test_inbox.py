"""The inbox of a worker: merged, bounded, in order."""

from __future__ import annotations

import threading
import time

from vmm_msi.domxml import bound_metadata, metadata
from vmm_msi.libvirt_driver.event_loop import GuestEvent
from vmm_msi.watch.inbox import GuestCheck, Inbox, WorkerCommand
from vmm_msi.watch.statistics import Statistics
from vmm_msi.watch.worker import FIRST_DELAY_S, LAST_DELAY_S, Backoff


def everything(inbox):
    items = []
    while (item := inbox.get(0)) is not None:
        items.append(item)
    return items


def test_events_of_one_guest_become_one_check():
    statistics = Statistics()
    inbox = Inbox(statistics)
    for event in (GuestEvent.STARTED, GuestEvent.REBOOTED, GuestEvent.STOPPED, GuestEvent.CRASHED):
        inbox.guest(event, "a", "")
    inbox.guest(GuestEvent.DEVICE_ADDED, "b", "")
    assert everything(inbox) == [GuestCheck("a", rebooted=True), GuestCheck("b", rebooted=False)]
    counts = statistics.snapshot().events
    assert counts == dict.fromkeys(["started", "rebooted", "stopped", "crashed", "device-added"], 1)


def test_events_of_the_definition_are_ignored():
    inbox = Inbox(Statistics())
    inbox.guest(GuestEvent.DEFINED, "a", "")
    inbox.guest(GuestEvent.UNDEFINED, "a", "")
    for namespace in (bound_metadata.NAMESPACE, "urn:other", ""):
        inbox.guest(GuestEvent.METADATA_CHANGED, "a", namespace)
    assert everything(inbox) == []
    inbox.guest(GuestEvent.METADATA_CHANGED, "a", metadata.NAMESPACE)
    assert everything(inbox) == [GuestCheck("a", rebooted=False)]


def test_too_many_guests_become_one_reconcile():
    inbox = Inbox(Statistics(), limit=4)
    inbox.check("reset", rebooted=True)
    for number in range(1000):
        inbox.check(f"{number}")
        assert len(inbox._guests) <= 4
    items = everything(inbox)
    assert items[:2] == [WorkerCommand.OVERFLOW, GuestCheck("reset", rebooted=True)]
    assert len(items) <= 5
    for number in range(1000):
        inbox.check(f"{number}", rebooted=True)
        assert len(inbox._guests) <= 4


def test_commands_come_first_and_stop_stays():
    inbox = Inbox(Statistics())
    inbox.check("a")
    inbox.reconcile()
    inbox.closed()
    assert [inbox.get(0), inbox.get(0), inbox.get(0)] == [
        WorkerCommand.CONNECTION_LOST, WorkerCommand.RECONCILE, GuestCheck("a", rebooted=False)
    ]  # fmt: skip
    inbox.closed()
    inbox.reconcile()
    inbox.connected()
    assert inbox.get(0) is None
    inbox.stop()
    assert [inbox.get(0), inbox.get(None)] == [WorkerCommand.STOP] * 2
    assert inbox.is_stopped()


def test_a_reconcile_ends_a_pause_and_is_consumed():
    inbox = Inbox(Statistics())
    begin = time.monotonic()
    threading.Timer(0.05, inbox.reconcile).start()
    inbox.pause(60)
    assert time.monotonic() - begin < 30
    assert inbox.get(0) is None
    inbox.pause(0.05)
    inbox.stop()
    inbox.pause(60)
    assert time.monotonic() - begin < 30


def test_delays_grow_to_a_minute_and_start_again():
    backoff = Backoff()
    delays = [backoff.next() for _ in range(9)]
    limits = [2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert all(limit / 2 <= delay <= limit for delay, limit in zip(delays, limits, strict=True))
    assert min(delays) >= FIRST_DELAY_S
    assert max(delays) <= LAST_DELAY_S
    assert len(set(delays)) == len(delays)
    backoff.reset()
    assert FIRST_DELAY_S <= backoff.next() <= 2 * FIRST_DELAY_S
