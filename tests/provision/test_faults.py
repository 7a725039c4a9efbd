"""Fail every call of libvirt, one after the other, before and after it: nothing is left half done.

The calls are real, on libvirt's test driver, and on a daemon's QEMU and test drivers. Over a lost
connection nothing can be undone, so another connection checks the result.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import libvirt  # noqa: TID251 - its state is read directly
import pytest
from provision.failing import CODES, breakable, error_of, failing_at, raising
from provision.helpers import HOST, PLUGINS, A, B, node, node_file

from vmm_msi import provision
from vmm_msi.config import Config
from vmm_msi.domxml.metadata import NAMESPACE, read_record
from vmm_msi.domxml.template import nested_guest
from vmm_msi.errors import HypervisorError, UndoError
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.libvirt_driver import connect
from vmm_msi.plugins import Observer
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.provision import AttachRequest, DetachRequest, Scope, host_lock
from vmm_msi.types import BinderKind

GUEST = "faulty"
LOST = "lost"
LOST_WORDS = (
    f"; the connection is lost, so the change cannot be undone: the definition of {GUEST} is "
    "either the old or the new one; vmm-msi status shows which"
)


def attaching(connection, scope=Scope.CONFIG, device=B, plugins=PLUGINS, **request):
    attach_request = AttachRequest(GUEST, (device,), binder=BinderKind.SIM, scope=scope, **request)
    return provision.attach(connection, plugins, Config(), HOST, attach_request)


def detaching(connection, scope=Scope.CONFIG, device=B, plugins=PLUGINS):
    return provision.detach(connection, DetachRequest(GUEST, (device,), scope), plugins)


def metadata(domain, flags):
    with contextlib.suppress(libvirt.libvirtError):  # the guest has no such element
        return domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, flags)


def everything(connection):
    """Return all that a change may touch: XML and metadata of every guest, and assigned devices."""
    lines = []
    for domain in sorted(connection._raw.listAllDomains(), key=lambda domain: domain.name()):
        state = connection.state(domain.name())
        lines += [str(state.definition), metadata(domain, libvirt.VIR_DOMAIN_AFFECT_CONFIG)]
        if state.running is not None:
            lines += [str(state.running), metadata(domain, libvirt.VIR_DOMAIN_AFFECT_LIVE)]
    lines += [f"{device}: {guest}" for device, guest in connection.assigned()]
    return "\n".join(map(str, lines))


@contextmanager
def observed():
    """Yield plugins with an observer, and its list of events: True for a failure."""
    seen = []

    class Watch(Observer):
        name = "watch"

        def vmm_msi_observe(self, event):
            seen.append(bool(event.error))

    plugins = PluginManager.load()
    plugins.register(Watch)
    yield plugins, seen


class World:
    """A guest at a URI, a connection that checks it, and a new connection for every change."""

    def __init__(self, watcher, own, running):
        self.watcher = watcher
        self.own = own
        self.running = running

    def reset(self):
        """Restart a running guest, so that plugged devices are gone."""
        if self.running:
            self.watcher.destroy(GUEST)
            self.watcher.start(GUEST)


@contextmanager
def daemon_world(uri, kind, running):
    with connect(uri) as watcher:
        watcher.define(nested_guest(GUEST, memory=256 << 20, kind=kind))
        try:
            attaching(watcher, device=A, spare_ports=2 * running)
            if running:
                watcher.start(GUEST)
            yield World(watcher, lambda: breakable(uri), running)
        finally:
            if watcher.is_active(GUEST):
                watcher.destroy(GUEST)
            watcher.undefine(GUEST)


@pytest.fixture(autouse=True)
def own_host_lock(tmp_path, monkeypatch):
    """Use a lock that other programs on this machine do not."""
    monkeypatch.setattr(host_lock, "FOLDER", tmp_path / "vmm-msi")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def world(request, tmp_path):
    """A guest that is off."""
    if request.param == "QEMU":
        daemon = request.getfixturevalue("lab_daemon")
        with daemon_world(daemon.uri, "qemu", running=False) as world:
            yield world
        return
    with node(node_file(tmp_path)) as connection:
        # Connections to this driver have separate guests, so all share one, which cannot be lost.
        connection.define(nested_guest(GUEST, memory=256 << 20, kind="test"))
        attaching(connection, device=A)
        yield World(connection, lambda: nullcontext((connection, None)), running=False)


@pytest.fixture
def live_world(lab_daemon):
    """A running guest on the daemon's test driver, which can plug but not unplug."""
    with daemon_world(lab_daemon.test_uri, "test", running=True) as world:
        yield world


def each_fault(world, what, after, change):
    """Apply ``change`` with call 1, 2, … failing, until no call is left.

    Yield the name of the failed call, the error, and the state before.
    """
    for at in range(1, 100):
        world.reset()
        before = everything(world.watcher)
        with observed() as (plugins, seen), world.own() as (connection, lose):
            fail = lose if what == LOST else raising(error_of(connection, what))
            failing, calls = failing_at(connection, at, after, fail)
            error = None
            try:
                change(failing, plugins=plugins)
            except HypervisorError as raised:
                error = raised
        # The host lock is free at once.
        with host_lock.held(world.watcher.hostname(), timeout_s=0):
            pass
        if error is None:
            assert seen == [False]
            assert len(calls) < at or (what == LOST and after and len(calls) == at), calls
            return
        assert "\n" not in str(error)
        # Observers are notified once the change has begun, and of nothing else.
        assert seen in ([], [True])
        if what != LOST:
            assert CODES[what] in str(error)
        if "defineXMLFlags" in calls[: at + after - 1]:
            assert seen == [True]
        yield calls[at - 1], error, before
    pytest.fail("there is no end of calls")


def simulators():
    """Return the simulators in memory; other tests of this process may keep some."""
    gc.collect()
    return {id(value) for value in gc.get_objects() if isinstance(value, SimBackend)}


@pytest.fixture(autouse=True)
def no_simulator_is_left():
    before = simulators()
    yield
    assert simulators() <= before


WHATS = [*CODES, LOST]
WHAT_IDS = ["failed", "timeout", "rpc", LOST]
both_sides = pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
#: The test driver is in this process: a connection to it cannot be lost.
everywhere = pytest.mark.parametrize(
    ("world", "what"),
    [
        pytest.param(where, what, id=f"{where}-{name}", marks=marks)
        for where, marks in (("test driver", ()), ("QEMU", pytest.mark.lab_root))
        for what, name in zip(WHATS, WHAT_IDS, strict=True)
        if (where, what) != ("test driver", LOST)
    ],
    indirect=["world"],
)
on_a_daemon = pytest.mark.parametrize("what", WHATS, ids=WHAT_IDS)


def check_config(world, what, after, change, expected):
    """Fail each call of a ``change`` of the definition, and apply it at last.

    :param expected: names of calls that must be among those that fail.
    """
    old = world.watcher.domain_xml(GUEST)
    start = everything(world.watcher)
    change(world.watcher)
    done = everything(world.watcher)
    world.watcher.define(old)
    assert everything(world.watcher) == start != done
    failed = []
    unclear = []
    for name, error, before in each_fault(world, what, after, change):
        failed.append(name)
        now = everything(world.watcher)
        assert before == start
        if not isinstance(error, UndoError):
            assert now == start, failed
            continue
        assert what == LOST, error
        assert LOST_WORDS in str(error)
        assert now in (start, done)
        unclear.append(now == start)
        world.watcher.define(old)
    assert everything(world.watcher) == done
    assert expected <= {*failed}
    assert failed.count("defineXMLFlags") == 1
    # Lost before the definition is sent, and before its reply; a later loss changes nothing.
    assert unclear == [True, False] * (what == LOST)


@everywhere
@both_sides
def test_attach_to_a_definition(world, what, after):
    expected = {"getHostname", "getLibVersion", "lookupByName", "listAllDomains", "isActive"}
    check_config(world, what, after, attaching, expected)


@everywhere
@both_sides
def test_detach_from_a_definition(world, what, after):
    attaching(world.watcher)
    check_config(world, what, after, detaching, {"getHostname", "lookupByName", "isActive"})


# Running guests.


def devices_of(xml):
    return [hostdev.host for hostdev in xml.hostdevs()], [d.host for d in read_record(xml).devices]


@pytest.mark.lab_root
@on_a_daemon
@both_sides
@pytest.mark.parametrize("scope", [Scope.LIVE, Scope.BOTH])
def test_attach_to_a_running_guest(live_world, what, after, scope):
    """A device that this driver cannot unplug is recorded, so that it can be detached later."""
    connection = live_world.watcher
    definition = connection.domain_xml(GUEST)
    failed, stuck = [], []

    def change(failing, plugins):
        return attaching(failing, scope, plugins=plugins)

    for name, error, before in each_fault(live_world, what, after, change):
        failed.append(name)
        state = connection.state(GUEST)
        plugged, recorded = devices_of(state.running)
        if what == LOST and isinstance(error, UndoError):
            assert LOST_WORDS in str(error)
            # Every plugged device is recorded.
            assert {*plugged} <= {*recorded}
            if str(state.definition) != str(definition):
                assert devices_of(state.definition) == ([A, B], [A, B])
                connection.define(definition)
        elif isinstance(error, UndoError):
            stuck.append(name)
            assert (
                f"undoing it in the running guest failed too: {B} may be plugged in: unplu"
                in str(error)
            )
            assert "virDomainDetachDeviceFlags; this driver of libvirt cannot do that" in str(error)
            assert str(state.definition) == str(definition)
            assert (plugged, recorded) == ([A, B], [A, B])
            with pytest.raises(HypervisorError, match="this driver of libvirt cannot do that"):
                detaching(connection, Scope.LIVE)
        else:
            assert everything(connection) == before, failed
    assert {"attachDeviceFlags", "setMetadata"} <= {*failed}
    assert failed.count("defineXMLFlags") == (scope is Scope.BOTH)
    if what != LOST:
        # After plugging: the reply of the call, and the check whether the guest has the device.
        assert stuck == ["attachDeviceFlags"] * after + ["lookupByName", "XMLDesc"]


@pytest.mark.lab_root
@on_a_daemon
@both_sides
@pytest.mark.parametrize("scope", [Scope.LIVE, Scope.BOTH])
def test_detach_from_a_running_guest(live_world, what, after, scope):
    """The driver always refuses to unplug, so the calls that undo the rest fail here, too."""
    connection = live_world.watcher
    definition = connection.domain_xml(GUEST)
    before = everything(connection)
    failed, kept = [], []
    for at in range(1, 100):
        with live_world.own() as (own, lose):
            fail = lose if what == LOST else raising(error_of(own, what))
            failing, calls = failing_at(own, at, after, fail)
            with pytest.raises(HypervisorError) as caught:
                detaching(failing, scope, device=A)
        if len(calls) < at:
            break
        failed.append(calls[at - 1])
        if isinstance(caught.value, UndoError):
            kept.append(failed[-1])
            words = LOST_WORDS if what == LOST else "failed too: "
            assert words in str(caught.value)
            connection.define(definition)
        assert everything(connection) == before, failed
    assert "detachDeviceFlags" in failed
    if what != LOST:
        # The check whether it is unplugged, the record, and the old definition.
        undo = ["lookupByName", "XMLDesc", "lookupByUUIDString", "setMetadata"]
        undo += ["defineXMLFlags", "XMLDesc"] * (scope is Scope.BOTH)
        assert kept == undo


# Connections lost while libvirt works.


def libvirtd_of(daemon):
    """Return the process id of a lab daemon's libvirtd, by the parents of processes."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _open, rest = path.read_text().partition(" (")
            name, _close, fields = rest.rpartition(") ")
            parents[int(pid)], names[int(pid)] = int(fields.split()[1]), name

    def ours(pid):
        return pid == daemon.pid or (pid in parents and ours(parents[pid]))

    (libvirtd,) = (pid for pid, name in names.items() if name == "libvirtd" and ours(pid))
    return libvirtd


@pytest.mark.lab_root
def test_a_connection_that_is_lost_while_libvirt_defines(lab_daemon):
    """libvirtd is stopped when the call arrives, and resumes when no client waits for it."""
    libvirtd = libvirtd_of(lab_daemon)
    with daemon_world(lab_daemon.uri, "qemu", running=False) as world:
        old = world.watcher.domain_xml(GUEST)
        before = everything(world.watcher)
        with world.own() as (connection, lose):
            probe, calls = failing_at(connection, 0, False, None)
            attaching(probe)
            done = everything(world.watcher)
            connection.define(old)
            timer = threading.Timer(0.2, lose)

            def begin():
                os.kill(libvirtd, signal.SIGSTOP)
                timer.start()

            at = calls.index("defineXMLFlags") + 1
            failing, _calls = failing_at(connection, at, False, begin)
            try:
                with pytest.raises(UndoError) as caught:
                    attaching(failing)
                timer.join()
            finally:
                os.kill(libvirtd, signal.SIGCONT)
        assert LOST_WORDS in str(caught.value)
        # libvirt may or may not finish the call; give it the time to.
        deadline = time.monotonic() + 1
        while everything(world.watcher) == before and time.monotonic() < deadline:
            time.sleep(0.05)
        # Read once more: a reading while libvirt works may be half of each.
        assert everything(world.watcher) in (before, done)
