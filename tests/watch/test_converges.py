"""Killed at any time and started again, the service brings every guest to the same state."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from provision.helpers import HOST, PLUGINS, attach
from waiting import wait_until
from watch.helpers import bound
from watch.process import Watch, command, environment, once

from vmm_msi.domxml.bound_metadata import NAMESPACE
from vmm_msi.domxml.template import nested_guest
from vmm_msi.errors import HypervisorError
from vmm_msi.libvirt_driver import connect
from vmm_msi.types import Outcome, PciAddress

pytestmark = pytest.mark.lab_root

KILLS = 25
LIFECYCLES = 100


def guest_name(number):
    return f"converges{number}"


@pytest.fixture
def connection(lab_daemon):
    """The test driver with three guests that have devices and one that has none."""
    with connect(lab_daemon.test_uri) as opened:
        for number in range(4):
            opened.define(nested_guest(guest_name(number), memory=128 << 20, kind="test"))
            devices = [PciAddress(number, 1 + each, 0, 0) for each in range(number)]
            if devices:
                attach(opened, *devices, guest=guest_name(number), host=HOST, plugins=PLUGINS)
        yield opened
        for number in range(4):
            if opened.is_active(guest_name(number)):
                opened.destroy(guest_name(number))
            opened.undefine(guest_name(number))


def toggle(connection, name):
    if connection.is_active(name):
        connection.destroy(name)
    else:
        connection.start(name)


class Churn:
    """Starts and stops guests in no order, on a connection of its own, until it is left."""

    def __init__(self, uri, seed):
        self._uri = uri
        self._random = random.Random(seed)  # noqa: S311 - not for secrets
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.toggles = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_error):
        self._ended.set()
        self._thread.join()

    def _run(self):
        with connect(self._uri) as connection:
            while not self._ended.wait(self._random.uniform(0, 0.02)):
                toggle(connection, guest_name(self._random.randrange(4)))
                self.toggles += 1


def problems(connection):
    """Say what is not as it should be, a line for each guest."""
    found = []
    for number in range(4):
        name = guest_name(number)
        uuid = connection.domain_xml(name).uuid
        text = connection.live_text(uuid)
        if text is None:
            # What is shut off has no element in its definition.
            if NAMESPACE in str(connection.domain_xml(name)):
                found.append(f"{name}: is off and has an element")
            continue
        count = text.count(f'"{NAMESPACE}"')
        if count != bool(number):
            found.append(f"{name}: {count} elements")
            continue
        if not number:
            continue
        state = bound(connection, uuid)
        if f"id='{state.run}'" not in text.partition(">")[0]:
            found.append(f"{name}: of another run")
        hosts = [device.host for device in state.devices]
        if hosts != [PciAddress(number, 1 + each, 0, 0) for each in range(number)]:
            found.append(f"{name}: {hosts}")
        found += [
            f"{name}: {device}"
            for device in state.devices
            if device.outcome is not Outcome.DELIVERED or device.programmed is None
        ]
    return found


def test_killed_while_guests_come_and_go(connection):
    """SIGKILL at times that chance picks, from before it connects to while it binds."""
    chance = random.Random(4)  # noqa: S311 - not for secrets
    killed = 0
    with Churn(connection.uri, 5) as churn:
        for _ in range(KILLS):
            with Watch("-c", connection.uri) as watch:
                assert wait_until(lambda w=watch: w.log or w.process.poll() is not None)
                time.sleep(chance.uniform(0, 0.1))
                watch.signal(signal.SIGKILL)
                assert watch.process.wait(30) == -signal.SIGKILL
                killed += 1
            assert [line["error"] for line in watch.found("failed")] == []
    assert (killed, churn.toggles > KILLS) == (KILLS, True)
    # What it left is put right once, and then there is nothing to do.
    once("-c", connection.uri)
    assert problems(connection) == []
    log, _ = once("-c", connection.uri)
    assert [line["event"] for line in log] == ["reconciled"]


def test_killed_at_each_call(connection):
    """A process that is killed before its n-th call of libvirt, and a guest that just started."""
    script = Path(__file__).with_name("killed_at.py")
    words = [sys.executable, script, None, *command("-c", connection.uri, "--once")[3:]]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    for at in range(1, 60):
        connection.start(guest_name(2))
        words[2] = str(at)
        done = subprocess.run(
            list(map(str, words)),
            capture_output=True,
            text=True,
            check=False,
            env=environment(PYTHONPATH=path),
        )
        killed = done.returncode == -signal.SIGKILL
        assert killed or done.returncode == 0, done.stderr
        if killed:
            once("-c", connection.uri)
        assert problems(connection) == [], at
        connection.destroy(guest_name(2))
        if not killed:
            assert at > 10
            return
    pytest.fail("there is no end of calls")


def test_alive_while_guests_come_and_go(connection):
    with Watch("-c", connection.uri) as watch:
        watch.wait_for("service-ready")
        with Churn(connection.uri, 6):
            time.sleep(2)
        assert wait_until(lambda: problems(connection) == []), problems(connection)
        assert [line["error"] for line in watch.found("failed")] == []


def memory(process):
    """Return the resident memory of a process, in KiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def processor_time(process):
    """Return the time that a process had a processor, in clock ticks."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_memory_and_time_stay_flat(connection):
    name, devices = guest_name(2), 2
    with Watch("-c", connection.uri) as watch:
        watch.wait_for("service-ready")
        sizes, times = [], []
        for part in range(3):
            begin = processor_time(watch.process)
            for number in range(part * LIFECYCLES, (part + 1) * LIFECYCLES):
                connection.start(name)
                assert wait_until(lambda n=number: len(watch.found("bound")) == (n + 1) * devices)
                connection.destroy(name)
            watch.wait_for("unbound", (part + 1) * LIFECYCLES * devices)
            times.append(processor_time(watch.process) - begin)
            sizes.append(memory(watch.process))
    assert sizes[2] - sizes[1] < 1024, sizes
    assert times[2] < 2 * times[0], times


def test_a_guest_that_is_gone_is_no_failure(connection):
    assert connection.live_text("00000000-0000-0000-0000-000000000000") is None
    uuid = connection.domain_xml(guest_name(1)).uuid
    assert connection.live_text(uuid) is None
    for gone in ("00000000-0000-0000-0000-000000000000", uuid):
        assert not connection.set_live_metadata(gone, NAMESPACE, "p", "<guest/>")
    connection.start(guest_name(1))
    with pytest.raises(HypervisorError, match="writing the live metadata of guest"):
        connection.set_live_metadata(uuid, NAMESPACE, "p", "<guest")
