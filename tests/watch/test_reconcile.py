"""Reconcile the guests of libvirt's test driver within this process."""

from __future__ import annotations

import libvirt  # noqa: TID251 - the tests raise its errors around the real calls
import pytest
from lxml import etree
from provision.failing import Failing
from watch.helpers import (
    UUID,
    A,
    Audit,
    B,
    attach,
    binder,
    bound,
    downs,
    live,
    node_file,
    outcomes,
    reconciler,
    running,
    ups,
    write_live_record,
)

from vmm_msi.config import Config, ConfigTable, DomainTable
from vmm_msi.domxml.bound_metadata import NAMESPACE, PREFIX, BoundDevice, BoundGuest, bound_xml
from vmm_msi.domxml.metadata import NAMESPACE as RECORD
from vmm_msi.errors import HypervisorError
from vmm_msi.libvirt_driver import Connection
from vmm_msi.plugins import ItsSelector
from vmm_msi.types import Iova, Outcome

#: What each of two devices of two ITSes may be programmed with.
SLOTS = (Iova(0x8000040), Iova(0x8001040))
BOTH = [(A, "delivered"), (B, "delivered")]
DOMAIN_UP, DOMAIN_DOWN = ("attach-domain", None), ("detach-domain", None)


@pytest.fixture
def file(tmp_path):
    return node_file(tmp_path)


@pytest.fixture
def audit():
    return Audit()


def record_without(connection, *devices):
    """Return the live record without ``devices``, in the form that libvirt accepts."""
    (element,) = live(connection).root.iterfind(f"metadata/{{{RECORD}}}domain")
    for device in devices:
        for child in element.iterfind(f"{{{RECORD}}}device[@host='{device}']"):
            element.remove(child)
    for child in element.iter("*"):
        child.tag = etree.QName(child).localname
    etree.cleanup_namespaces(element)
    return etree.tostring(element, encoding="unicode", with_tail=False)


def put(connection, element):
    connection.set_live_metadata(UUID, NAMESPACE, PREFIX, element)


def test_a_running_guest_is_bound_once(file, audit):
    with running(file, A, B) as connection:
        service = reconciler()
        assert service.reconcile(connection, binder(audit)) == []
        assert audit.drain() == [DOMAIN_UP, *ups(A, B)]
        assert bound(connection) == BoundGuest(
            int(live(connection).root.get("id")),
            "first-in-group",
            (
                BoundDevice(A, "identity", "sim", SLOTS, Outcome.DELIVERED),
                BoundDevice(B, "identity", "sim", SLOTS, Outcome.DELIVERED),
            ),
        )
        before = str(live(connection))
        for again in (service, reconciler()):
            assert again.reconcile(connection, binder(audit)) == []
        assert audit.drain() == []
        assert str(live(connection)) == before
        assert "bound/1" not in str(connection.domain_xml("guest0"))


def test_a_guest_without_a_record_is_left_alone(file, audit):
    with running(file) as connection:
        service = reconciler()
        before = str(live(connection))
        service.reconcile(connection, binder(audit))
        assert (str(live(connection)), audit.drain(), service.watched) == (before, [], {})


def test_an_attach_to_the_definition_counts_from_the_next_start(file, audit):
    with running(file) as connection:
        service = reconciler()
        attach(connection, A)
        service.reconcile(connection, binder(audit))
        assert (bound(connection), audit.drain()) == (None, [])
        connection.destroy("guest0")
        connection.start("guest0")
        service.check(connection, binder(audit), UUID)
        assert audit.drain() == [DOMAIN_UP, *ups(A)]


@pytest.mark.parametrize("by_event", [True, False], ids=["event", "reconcile"])
def test_a_stopped_guest_is_unbound(file, audit, by_event):
    with running(file, A, B) as connection:
        service = reconciler()
        service.reconcile(connection, binder(audit))
        audit.drain()
        connection.destroy("guest0")
        if by_event:
            service.check(connection, binder(audit), UUID)
        else:
            service.reconcile(connection, binder(audit))
        assert audit.drain() == [*downs(A, B), DOMAIN_DOWN]
        assert service.watched == {}


def test_a_guest_that_restarted_between_checks_is_bound_again(file, audit):
    with running(file, A) as connection:
        service = reconciler()
        service.reconcile(connection, binder(audit))
        audit.drain()
        connection.destroy("guest0")
        connection.start("guest0")
        service.check(connection, binder(audit), UUID)
        assert audit.drain() == [*downs(A), DOMAIN_DOWN, DOMAIN_UP, *ups(A)]
        assert outcomes(connection) == [(A, "delivered")]


@pytest.mark.parametrize(("write", "bound_by_then"), [(1, False), (2, True)])
def test_a_guest_that_stops_during_the_bind(file, audit, write, bound_by_then):
    with running(file, A) as connection:
        service = reconciler()
        counting = Failing(connection._raw, 0, False, None)
        service.check(Connection(counting, connection.uri, readonly=False), binder(), UUID)
        calls = [n for n, name in enumerate(counting.calls, 1) if name == "setMetadata"]
        connection.destroy("guest0")
        service.reconcile(connection, binder())
        connection.start("guest0")
        raw = Failing(
            connection._raw, calls[write - 1], False, lambda: connection.destroy("guest0")
        )
        service.check(Connection(raw, connection.uri, readonly=False), binder(audit), UUID)
        assert audit.drain() == bound_by_then * [DOMAIN_UP, *ups(A), *downs(A), DOMAIN_DOWN]
        assert (service.watched, service.failure) == ({}, None)
        assert not connection.is_active("guest0")


@pytest.mark.parametrize("fresh", [False, True], ids=["same", "restarted"])
def test_a_reboot_binds_again(file, audit, fresh):
    with running(file, A, B) as connection:
        service = reconciler()
        service.reconcile(connection, binder(audit))
        audit.drain()
        before = bound(connection)
        service = reconciler() if fresh else service
        service.check(connection, binder(audit), UUID, rebooted=True)
        assert audit.drain() == [*downs(A, B), DOMAIN_DOWN, DOMAIN_UP, *ups(A, B)]
        assert bound(connection) == before


@pytest.mark.parametrize("fresh", [False, True], ids=["same", "restarted"])
def test_a_hotplugged_device_leaves_the_others_bound(file, audit, fresh):
    with running(file, A, B) as connection:
        full = record_without(connection)
        write_live_record(connection, record_without(connection, B))
        service = reconciler()
        service.reconcile(connection, binder(audit))
        assert audit.drain() == [DOMAIN_UP, *ups(A)]
        first = bound(connection).devices
        service = reconciler() if fresh else service
        write_live_record(connection, full)
        service.check(connection, binder(audit), UUID)
        assert audit.drain() == ups(B)
        assert bound(connection).devices[:1] == first
        assert outcomes(connection) == BOTH
        service = reconciler() if fresh else service
        write_live_record(connection, record_without(connection, A))
        service.check(connection, binder(audit), UUID)
        assert audit.drain() == downs(A)
        assert outcomes(connection) == [(B, "delivered")]
        service = reconciler() if fresh else service
        write_live_record(connection, None)
        service.check(connection, binder(audit), UUID)
        assert audit.drain() == [*downs(B), DOMAIN_DOWN]
        assert (bound(connection), service.watched) == (None, {})


def test_a_removed_element_is_written_again(file, audit):
    with running(file, A) as connection:
        service = reconciler()
        service.reconcile(connection, binder(audit))
        audit.drain()
        before = bound(connection)
        put(connection, None)
        service.reconcile(connection, binder(audit))
        assert (audit.drain(), bound(connection)) == ([], before)


def test_the_element_of_a_saved_run_is_ignored(file, audit):
    """libvirt restores the metadata of the saved run with the guest."""
    with running(file, A) as connection:
        device = BoundDevice(A, "identity", "sim", (Iova(0x40),), Outcome.DELIVERED)
        put(connection, bound_xml(BoundGuest(4000, "first-in-group", (device,))))
        reconciler().reconcile(connection, binder(audit))
        assert audit.drain() == [DOMAIN_UP, *ups(A)]
        assert bound(connection).devices[0].programmed == (Iova(0x8000040),)


def test_an_element_without_a_record_is_removed(file, audit):
    with running(file) as connection:
        device = BoundDevice(A, "identity", "sim", (Iova(0x8000040),), Outcome.DELIVERED)
        run = int(live(connection).root.get("id"))
        put(connection, bound_xml(BoundGuest(run, "first-in-group", (device,))))
        reconciler().reconcile(connection, binder(audit))
        assert audit.drain() == [*downs(A), DOMAIN_DOWN]
        assert bound(connection) is None


def test_a_half_bound_device_is_unbound_and_bound_again(file, audit):
    with running(file, A, B) as connection:
        reconciler().reconcile(connection, binder())
        stored = bound(connection)
        first, second = stored.devices
        begun = BoundDevice(B, second.strategy, second.by)
        put(connection, bound_xml(BoundGuest(stored.run, stored.selector, (first, begun))))
        reconciler().reconcile(connection, binder(audit))
        assert audit.drain() == [*downs(B), *ups(B)]
        assert bound(connection) == stored


def test_a_veto_is_an_outcome(file):
    audit = Audit(B)
    with running(file, A, B) as connection:
        service = reconciler()
        service.reconcile(connection, binder(audit))
        assert outcomes(connection) == [(A, "delivered"), (B, "refused")]
        assert audit.drain() == [DOMAIN_UP, *ups(A), ("attach-device", B)]
        service.reconcile(connection, binder(audit))
        assert audit.drain() == []
        assert service.failure is None
        connection.destroy("guest0")
        service.reconcile(connection, binder(audit))
        assert audit.drain() == [*downs(A), DOMAIN_DOWN]
        snapshot = service._statistics.snapshot()
        assert (snapshot.binds, snapshot.unbinds) == (1, 1)


def test_two_strategies_in_one_guest(file, audit):
    with running(file) as connection:
        connection.destroy("guest0")
        attach(connection, A)
        attach(connection, B, strategy="host-cookie", allow_faults=True)
        connection.start("guest0")
        service = reconciler()
        service.reconcile(connection, binder(audit))
        assert audit.drain() == [DOMAIN_UP, *ups(A), DOMAIN_UP, *ups(B)]
        strategies = [device.strategy for device in bound(connection).devices]
        assert strategies == ["identity", "host-cookie"]
        assert outcomes(connection) == BOTH
        write_live_record(connection, record_without(connection, B))
        reconciler().reconcile(connection, binder(audit))
        assert audit.drain() == [*downs(B), DOMAIN_DOWN]
        connection.destroy("guest0")


def test_another_selector_binds_again(file, audit):
    class Other(ItsSelector):
        name = "other"
        summary = "as the default"

        def vmm_msi_select_its(self, device, host):
            return None

    with running(file, A) as connection:
        service = reconciler()
        service.reconcile(connection, binder(audit))
        audit.drain()
        table = ConfigTable(domain=[DomainTable("guest0", its_selector="other")])
        service.reconcile(connection, binder(audit, Other(), settings=Config(table)))
        assert audit.drain() == [*downs(A), DOMAIN_DOWN, DOMAIN_UP, *ups(A)]
        assert bound(connection).selector == "other"


@pytest.mark.parametrize(
    ("namespace", "element", "message"),
    [
        (NAMESPACE, "<guest run='1'/>", "<guest> lacks its-selector"),
        (NAMESPACE.replace("/1", "/2"), "<guest/>", "it has version '2'"),
    ],
    ids=["broken", "newer"],
)
def test_an_unreadable_element_is_left_alone(file, audit, namespace, element, message):
    with running(file, A) as connection:
        connection.set_live_metadata(UUID, namespace, PREFIX, element)
        before = str(live(connection))
        service = reconciler()
        assert service.reconcile(connection, binder(audit)) == []
        assert message in str(service.failure)
        assert "virsh metadata guest0" in str(service.failure)
        assert (str(live(connection)), audit.drain()) == (before, [])


def test_a_broken_observer_leaves_nothing_bound(file, audit):
    class Broken(Audit):
        def vmm_msi_veto(self, event):
            if str(event.action) == "bind-doorbell" and event.device == B:
                raise ZeroDivisionError
            return

    broken = Broken()
    with running(file, A, B) as connection:
        service = reconciler()
        assert service.reconcile(connection, binder(broken)) == []
        assert service.failure is not None
        assert bound(connection) is None
        failed, *undone = broken.drain()[5:]
        assert failed == ("bind-doorbell", B)
        assert undone == [*downs(A), ("detach-device", B), DOMAIN_DOWN]
        service.reconcile(connection, binder(audit))
        assert audit.drain() == [DOMAIN_UP, *ups(A, B)]
        assert outcomes(connection) == BOTH


# The process is killed before or after each call of libvirt.


class KilledError(BaseException):
    """Derived from BaseException, so that vmm-msi does not catch it."""


def raising(error):
    def strike():
        raise error

    return strike


def balanced(events):
    """Return whether no device was bound twice without an unbind between."""
    up = set()
    for action, device in events:
        if action == "prepare-msi":
            if device in up:
                return False
            up.add(device)
        elif action == "unbind-doorbell":
            up.discard(device)
    return True


def begin(connection, audit, change):
    """Bring a guest to the state before ``change``; return the reconciler."""
    service = reconciler()
    if change != "bind":
        service.reconcile(connection, binder(audit))
    if change == "grow":
        full = record_without(connection)
        write_live_record(connection, record_without(connection, B))
        service.reconcile(connection, binder(audit))
        write_live_record(connection, full)
    elif change == "shrink":
        write_live_record(connection, record_without(connection, A))
    elif change == "restart":
        connection.destroy("guest0")
        connection.start("guest0")
    return service


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("change", ["bind", "reboot", "grow", "shrink", "restart"])
def test_killed_at_each_call(file, change, after):
    expected = [(B, "delivered")] if change == "shrink" else BOTH
    for at in range(1, 100):
        audit = Audit()
        with running(file, A, B) as connection:
            service = begin(connection, audit, change)
            raw = Failing(connection._raw, at, after, raising(KilledError()))
            killing = Connection(raw, connection.uri, readonly=False)
            killed = True
            try:
                if change == "reboot":
                    service.check(killing, binder(audit), UUID, rebooted=True)
                else:
                    service.reconcile(killing, binder(audit))
                killed = False
            except KilledError:
                reconciler().reconcile(connection, binder(audit))
            assert outcomes(connection) == expected, raw.calls
            run = int(live(connection).root.get("id"))
            assert bound(connection).run == run
            # A process that starts after the end of a run does not know its bound devices.
            if change != "restart":
                assert balanced(audit.drain()), raw.calls
            reconciler().reconcile(connection, binder(audit))
            assert change == "restart" or audit.drain() == []
            connection.destroy("guest0")
            if not killed:
                assert len(raw.calls) < at
                return
    pytest.fail("no run reached the last call")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_refusal_at_each_call(file, after):
    """libvirt refuses one call on a live connection: the guest is checked again."""
    for at in range(1, 100):
        audit = Audit()
        with running(file, A, B) as connection:
            try:
                connection._raw.lookupByUUIDString("no UUID")
            except libvirt.libvirtError as error:
                raw = Failing(connection._raw, at, after, raising(error))
            service = reconciler()
            failing = Connection(raw, connection.uri, readonly=False)
            retry = []
            try:
                retry = service.reconcile(failing, binder(audit))
            except HypervisorError:
                # Listing the guests failed, or the connection seems to be lost: reconnect.
                service.reconcile(connection, binder(audit))
            for uuid in retry:
                assert service.check(connection, binder(audit), uuid)
            assert outcomes(connection) == BOTH, raw.calls
            assert balanced(audit.drain()), raw.calls
            reconciler().reconcile(connection, binder(audit))
            assert audit.drain() == []
            connection.destroy("guest0")
            if len(raw.calls) < at:
                return
    pytest.fail("no run reached the last call")
