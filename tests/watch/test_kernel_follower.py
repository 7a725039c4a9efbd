"""A guest whose record names the kernel as the binder, and a kernel's file that is a text."""

from __future__ import annotations

import logging

import pytest
from lxml import etree
from watch.helpers import (
    UUID,
    A,
    B,
    attach,
    binder,
    bound,
    live,
    node_file,
    running,
    write_live_record,
)

from vmm_msi.domxml.metadata import NAMESPACE as RECORD
from vmm_msi.host.msi_bindings import MsiBindingsFile
from vmm_msi.types import Iova, Outcome
from vmm_msi.watch.guest_msi import GuestMsiReader
from vmm_msi.watch.kernel_follower import QUICK_S
from vmm_msi.watch.reconcile import Reconciler
from vmm_msi.watch.statistics import Statistics

DEVICE = f"device {A} context 1 hwpt 3 vdevice 8 vsid 0x1100 allocator direct"


def binding(giova="0xfffff000"):
    return f"binding {A} iova {giova} gpa 0x8090000 shift 12 hpa 0x8090000 used"


class Watched:
    """A service for one guest, and the lines that it logged since the last look."""

    def __init__(self, connection, path, caplog):
        self.connection, self.path, self.caplog = connection, path, caplog
        self.statistics = Statistics()
        self.binder = binder()
        self.start()

    def start(self):
        file = MsiBindingsFile(self.path)
        self.reconciler = Reconciler("test", self.statistics, file=file)

    def kernel_has(self, *lines):
        self.path.write_text("\n".join(["version 1", *lines, ""]))

    def check(self):
        self.caplog.clear()
        self.reconciler.reconcile(self.connection, self.binder)
        return self._events()

    def look(self):
        self.caplog.clear()
        self.reconciler.follow(self.connection, self.binder)
        return self._events()

    def _events(self):
        names = {"bound", "kernel-bound", "kernel-refused", "giova-corrected", "unbound"}
        return [record.event for record in self.caplog.records if record.event in names]

    def outcome(self):
        (device,) = bound(self.connection).devices
        return device.by, device.outcome, device.programmed


def recorded_for_the_kernel(connection, strategy="direct", uuid=UUID):
    """Have the live record of a guest say that the kernel binds its device."""
    (element,) = live(connection, uuid).root.iterfind(f"metadata/{{{RECORD}}}domain")
    for child in element.iter("*"):
        child.tag = etree.QName(child).localname
    element.find("device").set("backend", "kernel")
    element.find("device").set("strategy", strategy)
    etree.cleanup_namespaces(element)
    text = etree.tostring(element, encoding="unicode", with_tail=False)
    write_live_record(connection, text, uuid)


@pytest.fixture
def watched(tmp_path, caplog):
    caplog.set_level(logging.INFO, "vmm_msi.watch")
    with running(node_file(tmp_path), A) as connection:
        recorded_for_the_kernel(connection)
        yield Watched(connection, tmp_path / "msi_bindings", caplog)


RIGHT = ("kernel", Outcome.DELIVERED, (Iova(0xFFFFF040),))
REFUSED = ("kernel", Outcome.REFUSED, ())


def test_a_binding_that_is_right(watched):
    watched.kernel_has(DEVICE, binding())
    assert watched.check() == ["bound"]
    assert watched.outcome() == RIGHT
    assert (watched.check(), watched.look()) == ([], [])
    assert watched.reconciler.wait() is not None


def test_a_kernel_without_the_interface_is_a_refusal_until_it_has_it(watched):
    assert watched.check() == ["bound", "kernel-refused"]
    assert watched.outcome() == REFUSED
    assert (watched.check(), watched.look()) == ([], [])
    watched.kernel_has(DEVICE, binding())
    assert watched.look() == []
    assert watched.outcome() == RIGHT


def test_a_device_that_no_vmm_has_is_tried_again_by_the_next_process(watched):
    watched.kernel_has()
    assert watched.check() == ["bound", "kernel-refused"]
    watched.start()
    assert watched.check() == ["bound", "kernel-refused"]
    watched.kernel_has(DEVICE, binding())
    watched.start()
    assert watched.check() == ["bound"]
    assert watched.outcome() == RIGHT


def test_a_guest_that_stops_between_two_looks_is_not_a_failure(watched):
    watched.kernel_has(DEVICE, binding())
    watched.check()
    watched.connection.destroy("guest0")
    watched.kernel_has()
    assert watched.look() == []
    assert [r for r in watched.caplog.records if r.levelno > logging.INFO] == []
    assert watched.check() == ["unbound"]


@pytest.mark.parametrize("before", [0xFFFFF000, 0xFFFFE000])
def test_a_guest_with_another_giova_is_looked_at_often(watched, monkeypatch, before):
    """The driver that took the device writes more, or gives it back soon."""
    watched.kernel_has(DEVICE, binding(hex(before)))
    watched.check()
    monkeypatch.setattr(GuestMsiReader, "written", lambda _self, _device: (Iova(0xFFFFF040),))
    follower = watched.reconciler._follower
    follower._quick_until = 0.0
    watched.look()
    assert (follower.wait() <= QUICK_S) == (before != 0xFFFFF000)


def test_two_guests_with_a_strategy_each(watched):
    """What happens to one does not change the other."""
    connection = watched.connection
    attach(connection, B, guest="guest1", allow_faults=True)
    connection.start("guest1")
    other = UUID[:-1] + "1"
    recorded_for_the_kernel(connection, "coerced:revision=v2", other)
    second = f"device {B} context 2 hwpt 3 vdevice 8 vsid 0x1100 allocator list"
    bound_second = f"binding {B} iova 0xfffff000 gpa 0x8090000 shift 12 hpa 0x8090000 used"
    watched.kernel_has(DEVICE, second, binding(), bound_second)
    assert watched.check() == ["bound", "bound"]
    assert watched.look() == []
    watched.kernel_has(DEVICE, second, binding())
    # The commands replace the text, so that a look at guest0 after it fails.
    assert "kernel-bound" in watched.look()
    assert watched.path.read_text().startswith(f"prepare {B}\n")
    watched.kernel_has(DEVICE, binding())
    connection.destroy("guest1")
    assert watched.check() == ["unbound"]
    assert watched.outcome() == RIGHT
    assert watched.look() == []


def test_a_device_without_a_binding_is_bound(watched):
    """The command is in the text, where a kernel would have a binding."""
    watched.kernel_has(DEVICE)
    assert watched.check() == ["bound", "kernel-bound"]
    assert watched.path.read_text().startswith(f"bind {A} 0xfffff000 0x8090000 12\n")


def test_a_device_that_is_no_longer_in_the_record_is_withdrawn(watched):
    watched.kernel_has(DEVICE, binding())
    watched.check()
    watched.connection.set_live_metadata(live(watched.connection).uuid, RECORD, "vmm-msi", None)
    assert watched.check() == ["unbound"]
    assert watched.path.read_text().startswith(f"unbind {A} 0xfffff000\n")


def test_the_giova_of_the_kernel_is_kept_while_the_guest_has_none(watched):
    """The guest of libvirt's test driver has no configuration space."""
    watched.kernel_has(DEVICE, binding("0xffffe000"))
    assert watched.check() == ["bound"]
    assert watched.outcome() == ("kernel", Outcome.DELIVERED, (Iova(0xFFFFE040),))
