"""Each call of libvirt is failed in turn, on the way in and out: nothing is left half done.

The calls are real, on libvirt's test driver, and on a daemon's QEMU and test drivers. A connection
that is lost cannot undo anything: what is there then is looked at over another one.
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

import libvirt  # noqa: TID251 - what it has is asked of it directly
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
from vmm_msi.provision import AttachRequest, BinderKind, DetachRequest, Scope, host_lock

GUEST = "faulty"
LOST = "lost"
LOST_WORDS = (
    f"; the connection is lost, so the change cannot be undone: the definition of {GUEST} is "
    "either the old or the new one; vmm-msi status shows which"
)


def attaching(connection, scope=Scope.CONFIG, device=B, plugins=PLUGINS, **request):
    wanted = AttachRequest(GUEST, (device,), binder=BinderKind.SIM, scope=scope, **request)
    return provision.attach(connection, plugins, Config(), HOST, wanted)


def detaching(connection, scope=Scope.CONFIG, device=B, plugins=PLUGINS):
    return provision.detach(connection, DetachRequest(GUEST, (device,), scope), plugins)


def metadata(domain, flags):
    with contextlib.suppress(libvirt.libvirtError):  # there is none
        return domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, flags)


def everything(connection):
    """Return all that a change may touch: XML and metadata of every guest, and who has what."""
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
    """Yield plugins with an observer, and the list of whether each event was a failure."""
    seen = []

    class Watch(Observer):
        name = "watch"

        def vmm_msi_observe(self, event):
            seen.append(bool(event.error))

    plugins = PluginManager.load()
    plugins.register(Watch)
    yield plugins, seen


class World:
    """A guest at a URI: who looks on, and a connection of its own for each change."""

    def __init__(self, watcher, own, running):
        self.watcher = watcher
        self.own = own
        self.running = running

    def reset(self):
        """Let a guest that runs start anew, so that nothing is left of what was plugged in."""
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
def turns_of_our_own(tmp_path, monkeypatch):
    """Keep what else goes on on this machine from having the turn when it is looked at."""
    monkeypatch.setattr(host_lock, "FOLDER", tmp_path)


@pytest.fixture
def world(request, tmp_path):
    """A guest that is off."""
    if request.param == "QEMU":
        daemon = request.getfixturevalue("lab_daemon")
        with daemon_world(daemon.uri, "qemu", running=False) as found:
            yield found
        return
    with node(node_file(tmp_path)) as connection:
        # Every connection has guests of its own there, so all use one, and it cannot be lost.
        connection.define(nested_guest(GUEST, memory=256 << 20, kind="test"))
        attaching(connection, device=A)
        yield World(connection, lambda: nullcontext((connection, None)), running=False)


@pytest.fixture
def live_world(lab_daemon):
    """A guest that runs, on the daemon's test driver, which plugs devices in but not out."""
    with daemon_world(lab_daemon.test_uri, "test", running=True) as found:
        yield found


def each_fault(world, what, after, change):
    """Make ``change`` with call 1, 2, … failing, until no call is left.

    Yield the name of each call that failed, the error, and what was there before.
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
        # Whoever is next has the turn at once.
        with host_lock.held(world.watcher.hostname(), timeout_s=0):
            pass
        if error is None:
            assert seen == [False]
            assert len(calls) < at or (what == LOST and after and len(calls) == at), calls
            return
        assert "\n" not in str(error)
        # Observers learn of it where the change was begun, and of nothing else.
        assert seen in ([], [True])
        if what != LOST:
            assert CODES[what] in str(error)
        if "defineXMLFlags" in calls[: at + after - 1]:
            assert seen == [True]
        yield calls[at - 1], error, before
    pytest.fail("there is no end of calls")


def models():
    """Return the models that are there; others of this process may have kept some."""
    gc.collect()
    return {id(found) for found in gc.get_objects() if isinstance(found, SimBackend)}


@pytest.fixture(autouse=True)
def no_model_is_left():
    before = models()
    yield
    assert models() <= before


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
    """Fail each call of ``change`` of a definition, and make it at last.

    :param expected: names of calls that are among those that fail.
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
    # Lost before the definition goes out, and before its echo comes in; later nobody misses it.
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


# What runs.


def devices_of(xml):
    return [hostdev.host for hostdev in xml.hostdevs()], [d.host for d in read_record(xml).devices]


@pytest.mark.lab_root
@on_a_daemon
@both_sides
@pytest.mark.parametrize("scope", [Scope.LIVE, Scope.BOTH])
def test_attach_to_what_runs(live_world, what, after, scope):
    """What this driver does not take out again is recorded, so that it can be taken out later."""
    connection = live_world.watcher
    definition = connection.domain_xml(GUEST)
    failed, stuck = [], []

    def change(failing, plugins):
        return attaching(failing, scope, plugins=plugins)

    for name, error, before in each_fault(live_world, what, after, change):
        failed.append(name)
        found = connection.state(GUEST)
        plugged, recorded = devices_of(found.running)
        if what == LOST and isinstance(error, UndoError):
            assert LOST_WORDS in str(error)
            # Nothing is plugged in that is not recorded.
            assert {*plugged} <= {*recorded}
            if str(found.definition) != str(definition):
                assert devices_of(found.definition) == ([A, B], [A, B])
                connection.define(definition)
        elif isinstance(error, UndoError):
            stuck.append(name)
            assert f"undoing it in the running guest failed too: {B} may be in it: unplu" in str(
                error
            )
            assert "virDomainDetachDeviceFlags; this driver of libvirt cannot do that" in str(error)
            assert str(found.definition) == str(definition)
            assert (plugged, recorded) == ([A, B], [A, B])
            with pytest.raises(HypervisorError, match="this driver of libvirt cannot do that"):
                detaching(connection, Scope.LIVE)
        else:
            assert everything(connection) == before, failed
    assert {"attachDeviceFlags", "setMetadata"} <= {*failed}
    assert failed.count("defineXMLFlags") == (scope is Scope.BOTH)
    if what != LOST:
        # Once it is plugged in: its own answer, and the look whether it is there.
        assert stuck == ["attachDeviceFlags"] * after + ["lookupByName", "XMLDesc"]


@pytest.mark.lab_root
@on_a_daemon
@both_sides
@pytest.mark.parametrize("scope", [Scope.LIVE, Scope.BOTH])
def test_detach_from_what_runs(live_world, what, after, scope):
    """The driver refuses in any case, so the calls that undo it fail here in their turn, too."""
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
        # The look whether it is out, the record, and the old definition.
        undo = ["lookupByName", "XMLDesc", "lookupByUUIDString", "setMetadata"]
        undo += ["defineXMLFlags", "XMLDesc"] * (scope is Scope.BOTH)
        assert kept == undo


# The connection is lost while libvirt works.


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

    (found,) = (pid for pid, name in names.items() if name == "libvirtd" and ours(pid))
    return found


@pytest.mark.lab_root
def test_a_connection_that_is_lost_while_libvirt_defines(lab_daemon):
    """libvirtd is stopped when the call reaches it, and goes on when nobody waits for it."""
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
        # Whether it carries the call out is libvirt's; look until it had the time to.
        deadline = time.monotonic() + 1
        while everything(world.watcher) == before and time.monotonic() < deadline:
            time.sleep(0.05)
        # Once more: what was asked for while libvirt did it may be half of each.
        assert everything(world.watcher) in (before, done)
