"""The service against a current libvirt: events, restarts, signals, systemd."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest
from provision.helpers import HOST, PLUGINS, A, B, attach
from waiting import wait_until
from watch.helpers import bound, outcomes
from watch.process import Watch, once

from vmm_msi.domxml import elements
from vmm_msi.domxml.bound_metadata import NAMESPACE, PREFIX, BoundDevice, BoundGuest, bound_xml
from vmm_msi.domxml.template import nested_guest
from vmm_msi.lab.machine.daemon import LabDaemon
from vmm_msi.libvirt_driver import connect
from vmm_msi.types import Iova, Outcome

pytestmark = pytest.mark.lab_root

GUEST = "watched"
DELIVERED = [(A, "delivered"), (B, "delivered")]


def define(connection, kind="test", *devices):
    """Define a guest and attach devices to it; return its UUID."""
    connection.define(nested_guest(GUEST, memory=128 << 20, kind=kind))
    if devices:
        attach(connection, *devices, guest=GUEST, host=HOST, plugins=PLUGINS)
    return connection.domain_xml(GUEST).uuid


def remove(connection):
    if connection.is_active(GUEST):
        connection.destroy(GUEST)
    connection.undefine(GUEST)


@pytest.fixture
def test_driver(lab_daemon):
    """Yield a connection to the test driver, with a guest that is shut off.

    The driver drops its guests when its last connection is closed.
    """
    with connect(lab_daemon.test_uri) as connection:
        define(connection, "test", A, B)
        yield connection
        remove(connection)


@pytest.fixture
def daemon(lab_root):
    """Yield a daemon for one test, which may restart or stop it."""
    with LabDaemon(lab_root) as own:
        yield own


def uuid_of(connection):
    return connection.domain_xml(GUEST).uuid


def test_guests_are_followed_and_stay_bound_when_the_service_exits(test_driver):
    uuid = uuid_of(test_driver)
    with Watch("-c", test_driver.uri) as watch:
        watch.wait_for("service-ready")
        test_driver.start(GUEST)
        lines = watch.wait_for("bound", 2, domain=GUEST)
        assert [(line["device"], line["programmed"]) for line in lines] == [
            (str(A), "0x8000040,0x8001040"),
            (str(B), "0x8000040,0x8001040"),
        ]
        assert {(line["strategy"], line["by"]) for line in lines} == {("identity", "sim")}
        assert wait_until(lambda: outcomes(test_driver, uuid) == DELIVERED)
        test_driver.destroy(GUEST)
        watch.wait_for("unbound", 2, domain=GUEST)
        test_driver.start(GUEST)
        watch.wait_for("bound", 4, domain=GUEST)
        assert wait_until(lambda: outcomes(test_driver, uuid) == DELIVERED)
        watch.signal(signal.SIGTERM)
        assert watch.process.wait(30) == 0
    assert watch.logged("service-stopping", signal="SIGTERM")
    assert len(watch.logged("unbound")) == 2
    assert outcomes(test_driver, uuid) == DELIVERED
    with Watch("-c", test_driver.uri) as restarted:
        restarted.wait_for("reconciled", watched=1)
        restarted.wait_for("service-ready")
        assert restarted.logged("bound") == []
        restarted.signal(signal.SIGINT)
        assert restarted.process.wait(30) == 0


def test_a_live_attach(test_driver):
    """The device comes before the record. The test driver sends an event for the record only."""
    from lxml import etree

    from vmm_msi.domxml.metadata import NAMESPACE as RECORD

    record = test_driver.domain_xml(GUEST).root.find(f"metadata/{{{RECORD}}}domain")
    hostdevs = [hostdev.element for hostdev in test_driver.domain_xml(GUEST).hostdevs()]
    remove(test_driver)
    define(test_driver)
    test_driver.start(GUEST)
    uuid = uuid_of(test_driver)
    for element in record.iter("*"):
        element.tag = etree.QName(element).localname
    etree.cleanup_namespaces(record)
    raw = test_driver._raw.lookupByName(GUEST)
    with Watch("-c", test_driver.uri) as watch:
        watch.wait_for("service-ready")
        text = etree.tostring(record, encoding="unicode", with_tail=False)
        assert test_driver.set_live_metadata(uuid, RECORD, "vmm-msi", text)
        for number, element in enumerate(hostdevs, 1):
            element.remove(element.find("address"))
            raw.attachDeviceFlags(etree.tostring(element, encoding="unicode"), 1)
            assert test_driver.set_live_metadata(uuid, RECORD, "vmm-msi", text)
            watch.wait_for("bound", number)
            assert wait_until(lambda n=number: outcomes(test_driver, uuid) == DELIVERED[:n])
    assert watch.logged("unbound") == []


def test_two_connections_and_one_is_down(test_driver, tmp_path):
    link = tmp_path / "socket"
    late = f"test+unix:///default?socket={link}"
    test_driver.start(GUEST)
    with Watch("-c", late, "-c", test_driver.uri, folder=tmp_path) as watch:
        watch.wait_for("bound", 2, uri=test_driver.uri)
        assert wait_until(lambda: "READY=1" in watch.notifications)
        assert wait_until(lambda: any(n.startswith("STATUS=1 of 2") for n in watch.notifications))
        failed = watch.wait_for("connect-failed", 2, uri=late)
        assert 1 <= failed[0]["retry_seconds"] <= 2 <= failed[1]["retry_seconds"] <= 4
        link.symlink_to(test_driver.uri.partition("socket=")[2])
        # A reload does not wait for the backoff.
        watch.signal(signal.SIGHUP)
        watch.wait_for("reconciled", uri=late, watched=1)
        assert watch.logged("bound", uri=late) == []
        watch.wait_for("reconciled", 2, uri=test_driver.uri)


def test_signals_and_systemd(test_driver, tmp_path):
    config = tmp_path / "vmm-msi.toml"
    config.write_text('strategy = "identity"\n')
    options = ("-c", test_driver.uri, "--config", config)
    with Watch(*options, folder=tmp_path, WATCHDOG_USEC="400000") as watch:
        assert wait_until(lambda: watch.notifications.count("WATCHDOG=1") > 3)
        assert watch.notifications.count("READY=1") == 1
        watch.signal(signal.SIGHUP)
        watch.wait_for("config-reloaded", file=config)
        assert wait_until(lambda: watch.notifications.count("READY=1") == 2)
        sent = watch.notifications
        assert sent.index("RELOADING=1") < len(sent) - sent[::-1].index("READY=1")
        config.write_text("strategy = 1\n")
        watch.signal(signal.SIGHUP)
        (line,) = watch.wait_for("config-invalid")
        assert f"{config}:1" in line["error"]
        assert wait_until(lambda: watch.notifications.count("READY=1") == 3)
        test_driver.start(GUEST)
        watch.wait_for("bound", 2)
        assert wait_until(
            lambda: "STATUS=1 of 1 connection up, 2 devices bound in 1 guest" in watch.notifications
        )
    assert watch.notifications[-1] == "STOPPING=1"


def test_a_restart_of_libvirtd(daemon, tmp_path):
    """The test driver drops its guests, the QEMU driver keeps them and their metadata."""
    options = ("-c", daemon.test_uri, "-c", daemon.uri)
    with Watch(*options, folder=tmp_path) as watch, connect(daemon.uri) as qemu:
        watch.wait_for("service-ready")
        define(qemu, "qemu")
        qemu.start(GUEST)
        uuid = uuid_of(qemu)
        device = BoundDevice(A, "identity", "sim", (Iova(0x8000040),), Outcome.DELIVERED)
        stored = BoundGuest(1, "first-in-group", (device,))
        qemu.set_live_metadata(uuid, NAMESPACE, PREFIX, bound_xml(stored))
        with connect(daemon.test_uri) as test:
            define(test, "test", A)
            test.start(GUEST)
            watch.wait_for("bound", uri=daemon.test_uri)
        daemon.restart()
        for uri in (daemon.uri, daemon.test_uri):
            watch.wait_for("connection-lost", uri=uri)
            watch.wait_for("connected", 2, uri=uri)
            watch.wait_for("reconciled", 2, uri=uri)
        # The guest of the test driver is gone with the old daemon.
        watch.wait_for("unbound", uri=daemon.test_uri)
        # QEMU's guest still runs, but it has no device, so its element is outdated.
        watch.wait_for("unbound", uri=daemon.uri)
        with connect(daemon.uri) as qemu:
            assert wait_until(lambda: bound(qemu, uuid) is None)
        with connect(daemon.test_uri) as test:
            define(test, "test", A, B)
            test.start(GUEST)
            watch.wait_for("bound", 3, uri=daemon.test_uri)
            assert wait_until(lambda: outcomes(test, uuid_of(test)) == DELIVERED)
            remove(test)
        with connect(daemon.uri) as qemu:
            remove(qemu)


def metric(path, name, **labels):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        text = b""
        while part := client.recv(65536):
            text += part
    for line in text.decode().splitlines():
        if line.startswith(f"vmm_msi_watch_{name}{{") and all(
            f'{key}="{value}"' in line for key, value in labels.items()
        ):
            return float(line.rpartition(" ")[2])
    return 0.0


def test_events_of_emulated_qemu(lab_daemon, tmp_path):
    """The service counts a reset and a hotplug of a guest without devices and binds nothing."""
    path = tmp_path / "metrics"
    with connect(lab_daemon.uri) as qemu:
        xml = nested_guest(GUEST, memory=128 << 20, kind="qemu")
        port = {"type": "pci", "model": "pcie-root-port"}
        elements.insert_after(xml.devices, xml.devices[-1], elements.build("controller", port))
        qemu.define(xml)
        try:
            with Watch("-c", qemu.uri, "--metrics", f"unix:{path}") as watch:
                watch.wait_for("service-ready")
                qemu.start(GUEST)
                raw = qemu._raw.lookupByName(GUEST)
                raw.reset(0)
                assert wait_until(lambda: metric(path, "events_total", kind="rebooted") == 1)
                rng = "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
                raw.attachDeviceFlags(rng, 1)
                assert wait_until(lambda: metric(path, "events_total", kind="device-added") == 1)
                qemu.destroy(GUEST)
                assert wait_until(lambda: metric(path, "events_total", kind="stopped") == 1)
                assert metric(path, "connection_up") == 1
            assert not path.exists()
            assert not watch.logged("bound")
            assert not watch.logged("failed")
        finally:
            remove(qemu)


def libvirtd_of(daemon):
    """Return the process id of the daemon's libvirtd."""
    inside = int(Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()[0])
    for child in Path(f"/proc/{inside}/task/{inside}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text().strip() == "libvirtd":
            return int(child)
    pytest.fail("the daemon has no libvirtd")


def test_the_watchdog_is_not_answered_while_libvirtd_hangs(daemon, tmp_path):
    with Watch("-c", daemon.test_uri, folder=tmp_path, WATCHDOG_USEC="1000000") as watch:
        watch.wait_for("service-ready")
        assert wait_until(lambda: "WATCHDOG=1" in watch.notifications)
        libvirtd = libvirtd_of(daemon)
        os.kill(libvirtd, signal.SIGSTOP)
        try:
            watch.signal(signal.SIGHUP)
            watch.wait_for("service-stuck", 2, what=daemon.test_uri)
            alive = watch.notifications.count("WATCHDOG=1")
            watch.wait_for("service-stuck", 4, what=daemon.test_uri)
            assert watch.notifications.count("WATCHDOG=1") == alive
        finally:
            os.kill(libvirtd, signal.SIGCONT)
        assert wait_until(lambda: watch.notifications.count("WATCHDOG=1") > alive)
        watch.wait_for("reconciled", 2)


# watch --once


def test_once(test_driver):
    test_driver.start(GUEST)
    log, _ = once("-c", test_driver.uri)
    assert [line["event"] for line in log] == ["bound", "bound", "reconciled"]
    log, _ = once("-c", test_driver.uri)
    assert [line["event"] for line in log] == ["reconciled"]
    assert outcomes(test_driver, uuid_of(test_driver)) == DELIVERED


def test_once_serves_the_remaining_connections(test_driver):
    test_driver.start(GUEST)
    down = "test+unix:///default?socket=/no/such/socket"
    log, error = once("-c", down, "-c", test_driver.uri, code=6)
    assert [line["event"] for line in log] == ["connect-failed", "bound", "bound", "reconciled"]
    assert json.loads(error)["message"].startswith(f"connecting to {down}: ")


def test_once_reports_a_guest_that_failed(test_driver):
    test_driver.start(GUEST)
    uuid = uuid_of(test_driver)
    test_driver.set_live_metadata(uuid, NAMESPACE, PREFIX, "<guest/>")
    log, error = once("-c", test_driver.uri, code=3)
    assert [line["event"] for line in log] == ["failed", "reconciled"]
    assert json.loads(error)["message"] == log[0]["error"]
    assert "<guest> lacks its-selector, run" in error
