"""After a kill at any time and a restart, the service brings every guest to the same state."""

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
    """Yield a connection to the test driver, with three guests with devices and one without."""
    with connect(lab_daemon.test_uri) as opened:
        for number in range(4):
            opened.define(nested_guest(guest_name(number), memory=128 << 20, kind="test"))
            devices = [PciAddress(number, 1 + bus, 0, 0) for bus in range(number)]
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
    """Start and stop guests at random, on a connection of its own, during a ``with`` block."""

    def __init__(self, uri, seed):
        self._uri = uri
        self._random = random.Random(seed)  # noqa: S311 - not for secrets
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.toggles = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_error):
        self._stop.set()
        self._thread.join()

    def _run(self):
        with connect(self._uri) as connection:
            while not self._stop.wait(self._random.uniform(0, 0.02)):
                toggle(connection, guest_name(self._random.randrange(4)))
                self.toggles += 1


def problems(connection):
    """Return the differences from the desired state of the guests, one line each."""
    lines = []
    for number in range(4):
        name = guest_name(number)
        uuid = connection.domain_xml(name).uuid
        text = connection.live_text(uuid)
        if text is None:
            # The definition of a guest never has the element.
            if NAMESPACE in str(connection.domain_xml(name)):
                lines.append(f"{name}: is shut off and has an element")
            continue
        count = text.count(f'"{NAMESPACE}"')
        if count != bool(number):
            lines.append(f"{name}: {count} elements")
            continue
        if not number:
            continue
        state = bound(connection, uuid)
        if f"id='{state.run}'" not in text.partition(">")[0]:
            lines.append(f"{name}: element of another run")
        hosts = [device.host for device in state.devices]
        if hosts != [PciAddress(number, 1 + bus, 0, 0) for bus in range(number)]:
            lines.append(f"{name}: {hosts}")
        lines += [
            f"{name}: {device}"
            for device in state.devices
            if device.outcome is not Outcome.DELIVERED or not device.programmed
        ]
    return lines


def test_killed_while_guests_come_and_go(connection):
    """SIGKILL at random times, between the start and the binding of devices."""
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
            assert [line["error"] for line in watch.logged("failed")] == []
    assert (killed, churn.toggles > KILLS) == (KILLS, True)
    # The next run repairs the state; the one after that changes nothing.
    once("-c", connection.uri)
    assert problems(connection) == []
    log, _ = once("-c", connection.uri)
    assert [line["event"] for line in log] == ["reconciled"]


def test_killed_at_each_call(connection):
    """Kill the process before its n-th call of libvirt, for every n, after a guest started."""
    script = Path(__file__).with_name("killed_at.py")
    arguments = [sys.executable, script, None, *command("-c", connection.uri, "--once")[3:]]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    for at in range(1, 60):
        connection.start(guest_name(2))
        arguments[2] = str(at)
        result = subprocess.run(
            list(map(str, arguments)),
            capture_output=True,
            text=True,
            check=False,
            env=environment(PYTHONPATH=path),
        )
        killed = result.returncode == -signal.SIGKILL
        assert killed or result.returncode == 0, result.stderr
        if killed:
            once("-c", connection.uri)
        assert problems(connection) == [], at
        connection.destroy(guest_name(2))
        if not killed:
            assert at > 10
            return
    pytest.fail("no run reached the last call")


def test_state_after_guests_come_and_go(connection):
    with Watch("-c", connection.uri) as watch:
        watch.wait_for("service-ready")
        with Churn(connection.uri, 6):
            time.sleep(2)
        assert wait_until(lambda: problems(connection) == []), problems(connection)
        assert [line["error"] for line in watch.logged("failed")] == []


def memory(process):
    """Return the resident memory of a process, in KiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def processor_time(process):
    """Return the processor time of a process, in clock ticks."""
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
                assert wait_until(lambda n=number: len(watch.logged("bound")) == (n + 1) * devices)
                connection.destroy(name)
            watch.wait_for("unbound", (part + 1) * LIFECYCLES * devices)
            times.append(processor_time(watch.process) - begin)
            sizes.append(memory(watch.process))
    assert sizes[2] - sizes[1] < 1024, sizes
    assert times[2] < 2 * times[0], times


def test_metadata_of_a_missing_guest(connection):
    assert connection.live_text("00000000-0000-0000-0000-000000000000") is None
    uuid = connection.domain_xml(guest_name(1)).uuid
    assert connection.live_text(uuid) is None
    for gone in ("00000000-0000-0000-0000-000000000000", uuid):
        assert not connection.set_live_metadata(gone, NAMESPACE, "p", "<guest/>")
    connection.start(guest_name(1))
    with pytest.raises(HypervisorError, match="writing the live metadata of guest"):
        connection.set_live_metadata(uuid, NAMESPACE, "p", "<guest")
