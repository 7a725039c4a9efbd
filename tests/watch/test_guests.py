"""One connection's guests, on libvirt's test driver within this process."""

from __future__ import annotations

import libvirt  # noqa: TID251 - an error of its own is put in, around the real calls
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
    guests,
    live,
    node_file,
    outcomes,
    running,
    ups,
    write_live_record,
)

from vmm_msi.config import Config, ConfigTable, DomainTable
from vmm_msi.domxml.bound_metadata import NAMESPACE, PREFIX, Bound, BoundDevice, bound_xml
from vmm_msi.domxml.metadata import NAMESPACE as RECORD
from vmm_msi.errors import HypervisorError
from vmm_msi.libvirt_driver import Connection
from vmm_msi.plugins import PluginInfo, PluginKind, hookimpl
from vmm_msi.types import Iova, Outcome

BOTH = [(A, "delivered"), (B, "delivered")]
DOMAIN_UP, DOMAIN_DOWN = ("attach-domain", None), ("detach-domain", None)


@pytest.fixture
def file(tmp_path):
    return node_file(tmp_path)


@pytest.fixture
def audit():
    return Audit()


def record_without(connection, *devices):
    """Return the live record without ``devices``, as libvirt takes it."""
    (element,) = live(connection).root.iterfind(f"metadata/{{{RECORD}}}domain")
    for device in devices:
        for child in element.iterfind(f"{{{RECORD}}}device[@host='{device}']"):
            element.remove(child)
    for each in element.iter("*"):
        each.tag = etree.QName(each).localname
    etree.cleanup_namespaces(element)
    return etree.tostring(element, encoding="unicode", with_tail=False)


def put(connection, element):
    connection.set_live_metadata(UUID, NAMESPACE, PREFIX, element)


def test_a_guest_that_runs_is_bound_once(file, audit):
    with running(file, A, B) as connection:
        watched = guests()
        assert watched.reconcile(connection, binder(audit)) == []
        assert audit.take() == [DOMAIN_UP, *ups(A, B)]
        assert bound(connection) == Bound(
            int(live(connection).root.get("id")),
            "first-in-group",
            (
                BoundDevice(A, "identity", "sim", Iova(0x8000040), Outcome.DELIVERED),
                BoundDevice(B, "identity", "sim", Iova(0x8001040), Outcome.DELIVERED),
            ),
        )
        before = str(live(connection))
        for again in (watched, guests()):
            assert again.reconcile(connection, binder(audit)) == []
        assert audit.take() == []
        assert str(live(connection)) == before
        assert "bound/1" not in str(connection.domain_xml("guest0"))


def test_a_guest_without_a_record_is_left_alone(file, audit):
    with running(file) as connection:
        watched = guests()
        before = str(live(connection))
        watched.reconcile(connection, binder(audit))
        assert (str(live(connection)), audit.take(), watched.entries) == (before, [], {})


def test_what_is_attached_to_the_definition_waits_for_the_next_start(file, audit):
    with running(file) as connection:
        watched = guests()
        attach(connection, A)
        watched.reconcile(connection, binder(audit))
        assert (bound(connection), audit.take()) == (None, [])
        connection.destroy("guest0")
        connection.start("guest0")
        watched.look(connection, binder(audit), UUID)
        assert audit.take() == [DOMAIN_UP, *ups(A)]


@pytest.mark.parametrize("seen", [True, False], ids=["event", "reconcile"])
def test_a_guest_that_stopped_is_unbound(file, audit, seen):
    with running(file, A, B) as connection:
        watched = guests()
        watched.reconcile(connection, binder(audit))
        audit.take()
        connection.destroy("guest0")
        if seen:
            watched.look(connection, binder(audit), UUID)
        else:
            watched.reconcile(connection, binder(audit))
        assert audit.take() == [*downs(A, B), DOMAIN_DOWN]
        assert watched.entries == {}


def test_a_guest_that_stopped_and_started_unseen_is_bound_again(file, audit):
    with running(file, A) as connection:
        watched = guests()
        watched.reconcile(connection, binder(audit))
        audit.take()
        connection.destroy("guest0")
        connection.start("guest0")
        watched.look(connection, binder(audit), UUID)
        assert audit.take() == [*downs(A), DOMAIN_DOWN, DOMAIN_UP, *ups(A)]
        assert outcomes(connection) == [(A, "delivered")]


@pytest.mark.parametrize(("write", "told"), [(1, False), (2, True)])
def test_a_guest_that_stops_while_it_is_bound(file, audit, write, told):
    with running(file, A) as connection:
        watched = guests()
        counted = Failing(connection._raw, 0, False, None)
        watched.look(Connection(counted, connection.uri, readonly=False), binder(), UUID)
        calls = [n for n, name in enumerate(counted.calls, 1) if name == "setMetadata"]
        connection.destroy("guest0")
        watched.reconcile(connection, binder())
        connection.start("guest0")
        raw = Failing(
            connection._raw, calls[write - 1], False, lambda: connection.destroy("guest0")
        )
        watched.look(Connection(raw, connection.uri, readonly=False), binder(audit), UUID)
        assert audit.take() == told * [DOMAIN_UP, *ups(A), *downs(A), DOMAIN_DOWN]
        assert (watched.entries, watched.failure) == ({}, None)
        assert not connection.is_active("guest0")


@pytest.mark.parametrize("fresh", [False, True], ids=["same", "restarted"])
def test_a_reboot_binds_again(file, audit, fresh):
    with running(file, A, B) as connection:
        watched = guests()
        watched.reconcile(connection, binder(audit))
        audit.take()
        before = bound(connection)
        watched = guests() if fresh else watched
        watched.look(connection, binder(audit), UUID, rebooted=True)
        assert audit.take() == [*downs(A, B), DOMAIN_DOWN, DOMAIN_UP, *ups(A, B)]
        assert bound(connection) == before


@pytest.mark.parametrize("fresh", [False, True], ids=["same", "restarted"])
def test_a_device_that_comes_and_goes_moves_no_other(file, audit, fresh):
    with running(file, A, B) as connection:
        full = record_without(connection)
        write_live_record(connection, record_without(connection, B))
        watched = guests()
        watched.reconcile(connection, binder(audit))
        assert audit.take() == [DOMAIN_UP, *ups(A)]
        first = bound(connection).devices
        watched = guests() if fresh else watched
        write_live_record(connection, full)
        watched.look(connection, binder(audit), UUID)
        assert audit.take() == ups(B)
        assert bound(connection).devices[:1] == first
        assert outcomes(connection) == BOTH
        watched = guests() if fresh else watched
        write_live_record(connection, record_without(connection, A))
        watched.look(connection, binder(audit), UUID)
        assert audit.take() == downs(A)
        assert outcomes(connection) == [(B, "delivered")]
        watched = guests() if fresh else watched
        write_live_record(connection, None)
        watched.look(connection, binder(audit), UUID)
        assert audit.take() == [*downs(B), DOMAIN_DOWN]
        assert (bound(connection), watched.entries) == (None, {})


def test_an_element_that_was_taken_out_is_put_back(file, audit):
    with running(file, A) as connection:
        watched = guests()
        watched.reconcile(connection, binder(audit))
        audit.take()
        before = bound(connection)
        put(connection, None)
        watched.reconcile(connection, binder(audit))
        assert (audit.take(), bound(connection)) == ([], before)


def test_the_element_of_a_saved_run_does_not_count(file, audit):
    """A guest that is restored brings back the metadata of the run that was saved."""
    with running(file, A) as connection:
        device = BoundDevice(A, "identity", "sim", Iova(0x40), Outcome.DELIVERED)
        put(connection, bound_xml(Bound(4000, "first-in-group", (device,))))
        guests().reconcile(connection, binder(audit))
        assert audit.take() == [DOMAIN_UP, *ups(A)]
        assert bound(connection).devices[0].programmed == Iova(0x8000040)


def test_an_element_without_a_record_goes(file, audit):
    with running(file) as connection:
        device = BoundDevice(A, "identity", "sim", Iova(0x8000040), Outcome.DELIVERED)
        run = int(live(connection).root.get("id"))
        put(connection, bound_xml(Bound(run, "first-in-group", (device,))))
        guests().reconcile(connection, binder(audit))
        assert audit.take() == [*downs(A), DOMAIN_DOWN]
        assert bound(connection) is None


def test_what_was_begun_is_undone_and_done_again(file, audit):
    with running(file, A, B) as connection:
        guests().reconcile(connection, binder())
        found = bound(connection)
        first, second = found.devices
        begun = BoundDevice(B, second.strategy, second.by)
        put(connection, bound_xml(Bound(found.run, found.selector, (first, begun))))
        guests().reconcile(connection, binder(audit))
        assert audit.take() == [*downs(B), *ups(B)]
        assert bound(connection) == found


def test_a_veto_is_an_outcome(file):
    audit = Audit(B)
    with running(file, A, B) as connection:
        watched = guests()
        watched.reconcile(connection, binder(audit))
        assert outcomes(connection) == [(A, "delivered"), (B, "refused")]
        assert audit.take() == [DOMAIN_UP, *ups(A), ("attach-device", B)]
        watched.reconcile(connection, binder(audit))
        assert audit.take() == []
        assert watched.failure is None
        connection.destroy("guest0")
        watched.reconcile(connection, binder(audit))
        assert audit.take() == [*downs(A), DOMAIN_DOWN]
        numbers = watched._statistics.numbers()
        assert (numbers.binds, numbers.unbinds) == (1, 1)


def test_two_strategies_in_one_guest(file, audit):
    with running(file) as connection:
        connection.destroy("guest0")
        attach(connection, A)
        attach(connection, B, strategy="host-cookie", allow_faults=True)
        connection.start("guest0")
        watched = guests()
        watched.reconcile(connection, binder(audit))
        assert audit.take() == [DOMAIN_UP, *ups(A), DOMAIN_UP, *ups(B)]
        found = bound(connection).devices
        assert [device.strategy for device in found] == ["identity", "host-cookie"]
        assert outcomes(connection) == BOTH
        write_live_record(connection, record_without(connection, B))
        guests().reconcile(connection, binder(audit))
        assert audit.take() == [*downs(B), DOMAIN_DOWN]
        connection.destroy("guest0")


def test_another_selector_binds_again(file, audit):
    class Other:
        @hookimpl
        def vmm_msi_describe(self):
            return PluginInfo(name="other", kind=PluginKind.ITS_SELECTOR, summary="as the default")

    with running(file, A) as connection:
        watched = guests()
        watched.reconcile(connection, binder(audit))
        audit.take()
        table = ConfigTable(domain=[DomainTable("guest0", its_selector="other")])
        watched.reconcile(connection, binder(audit, Other(), settings=Config(table)))
        assert audit.take() == [*downs(A), DOMAIN_DOWN, DOMAIN_UP, *ups(A)]
        assert bound(connection).selector == "other"


@pytest.mark.parametrize(
    ("namespace", "element", "words"),
    [
        (NAMESPACE, "<guest run='1'/>", "<guest> lacks its-selector"),
        (NAMESPACE.replace("/1", "/2"), "<guest/>", "it is of version '2'"),
    ],
    ids=["broken", "newer"],
)
def test_an_element_that_cannot_be_read_is_left_alone(file, audit, namespace, element, words):
    with running(file, A) as connection:
        connection.set_live_metadata(UUID, namespace, PREFIX, element)
        before = str(live(connection))
        watched = guests()
        assert watched.reconcile(connection, binder(audit)) == []
        assert words in str(watched.failure)
        assert "virsh metadata guest0" in str(watched.failure)
        assert (str(live(connection)), audit.take()) == (before, [])


def test_a_strategy_that_breaks_leaves_nothing_bound(file, audit):
    class Broken(Audit):
        @hookimpl
        def vmm_msi_veto(self, event):
            if str(event.action) == "bind-doorbell" and event.device == B:
                raise ZeroDivisionError
            return

    broken = Broken()
    with running(file, A, B) as connection:
        watched = guests()
        assert watched.reconcile(connection, binder(broken)) == []
        assert watched.failure is not None
        assert bound(connection) is None
        failed, *undone = broken.take()[5:]
        assert failed == ("bind-doorbell", B)
        assert undone == [*downs(A), ("detach-device", B), DOMAIN_DOWN]
        watched.reconcile(connection, binder(audit))
        assert audit.take() == [DOMAIN_UP, *ups(A, B)]
        assert outcomes(connection) == BOTH


# A process that is killed, before or after each call of libvirt.


class KilledError(BaseException):
    """Nothing of ours catches it."""


def raising(error):
    def strike():
        raise error

    return strike


def balanced(events):
    """Tell whether no device was bound while it was."""
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
    """Bring a guest to where ``change`` is next; return the guests that are watched."""
    watched = guests()
    if change != "bind":
        watched.reconcile(connection, binder(audit))
    if change == "grow":
        full = record_without(connection)
        write_live_record(connection, record_without(connection, B))
        watched.reconcile(connection, binder(audit))
        write_live_record(connection, full)
    elif change == "shrink":
        write_live_record(connection, record_without(connection, A))
    elif change == "restart":
        connection.destroy("guest0")
        connection.start("guest0")
    return watched


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("change", ["bind", "reboot", "grow", "shrink", "restart"])
def test_killed_at_each_call(file, change, after):
    wanted = [(B, "delivered")] if change == "shrink" else BOTH
    for at in range(1, 100):
        audit = Audit()
        with running(file, A, B) as connection:
            watched = begin(connection, audit, change)
            raw = Failing(connection._raw, at, after, raising(KilledError()))
            killing = Connection(raw, connection.uri, readonly=False)
            killed = True
            try:
                if change == "reboot":
                    watched.look(killing, binder(audit), UUID, rebooted=True)
                else:
                    watched.reconcile(killing, binder(audit))
                killed = False
            except KilledError:
                guests().reconcile(connection, binder(audit))
            assert outcomes(connection) == wanted, raw.calls
            run = int(live(connection).root.get("id"))
            assert bound(connection).run == run
            # A run that ended takes with it what was bound; only a witness of that can tell.
            if change != "restart":
                assert balanced(audit.take()), raw.calls
            guests().reconcile(connection, binder(audit))
            assert change == "restart" or audit.take() == []
            connection.destroy("guest0")
            if not killed:
                assert len(raw.calls) < at
                return
    pytest.fail("there is no end of calls")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_refused_at_each_call(file, after):
    """A call that libvirt refuses, on a connection that stands: it is looked at again."""
    for at in range(1, 100):
        audit = Audit()
        with running(file, A, B) as connection:
            try:
                connection._raw.lookupByUUIDString("no UUID")
            except libvirt.libvirtError as error:
                raw = Failing(connection._raw, at, after, raising(error))
            watched = guests()
            failing = Connection(raw, connection.uri, readonly=False)
            again = []
            try:
                again = watched.reconcile(failing, binder(audit))
            except HypervisorError:
                # Listing the guests, or the connection seems to be gone: it is made again.
                watched.reconcile(connection, binder(audit))
            for uuid in again:
                assert watched.look(connection, binder(audit), uuid)
            assert outcomes(connection) == BOTH, raw.calls
            assert balanced(audit.take()), raw.calls
            guests().reconcile(connection, binder(audit))
            assert audit.take() == []
            connection.destroy("guest0")
            if len(raw.calls) < at:
                return
    pytest.fail("there is no end of calls")
