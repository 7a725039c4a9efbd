"""Eight processes change the guests of one daemon at once, by two names of its socket."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from provision.helpers import HOST_FILE
from provision.together import DEVICES, GUESTS, by_call, work

from vmm_msi.domxml import added_elements
from vmm_msi.domxml.metadata import DomainRecord, read_record, record_in
from vmm_msi.domxml.placement import Placement
from vmm_msi.domxml.template import nested_guest
from vmm_msi.libvirt_driver import connect
from vmm_msi.provision import host_lock

pytestmark = pytest.mark.lab_root

PROCESSES = 8


@pytest.fixture
def daemon(lab_daemon):
    """A connection to the QEMU driver with the guests, and their definitions."""
    with connect(lab_daemon.uri) as connection:
        try:
            for name in GUESTS:
                connection.define(nested_guest(name, memory=256 << 20, kind="qemu"))
            yield connection
        finally:
            for name in GUESTS:
                connection.undefine(name)


def check(connection):
    """Check all guests under the host lock: each is whole, no device is in two.

    :return: which guest has which device.
    """
    with host_lock.held(connection.hostname()):
        xmls = [connection.domain_xml(name) for name in GUESTS]
    holders = {}
    for xml in xmls:
        assert added_elements.gone(Placement(xml), record_in(xml)) == []
        indexes = [controller.index for controller in xml.controllers()]
        assert indexes == [*range(len(indexes))]
        record = read_record(xml) or DomainRecord()
        assert [hostdev.host for hostdev in xml.hostdevs()] == [d.host for d in record.devices]
        for device in record.devices:
            assert device.host not in holders
            holders[device.host] = xml.name
    return holders


def test_eight_processes_at_once(lab_daemon, daemon, tmp_path):
    before = {name: str(daemon.domain_xml(name)) for name in GUESTS}
    other = tmp_path / "sock"
    other.symlink_to(lab_daemon.socket)
    uris = (lab_daemon.uri, f"qemu+unix:///system?socket={other}")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=spawn) as pool:
        working = [
            pool.submit(
                work,
                number,
                uris[number % 2],
                tmp_path,
                # Two of them start a process for each change, which takes ten times as long.
                3 if number < 2 else 12,
                number < 2,
            )
            for number in range(PROCESSES)
        ]
        ready = {str(number) for number in range(PROCESSES)}
        while not ready <= {path.name for path in tmp_path.iterdir()}:
            for process in working:
                if process.done():
                    process.result()
            time.sleep(0.01)
        (tmp_path / "go").touch()
        looks = 0
        while not all(process.done() for process in working):
            check(daemon)
            looks += 1
            time.sleep(0.05)
        ended = [process.result() for process in working]
    held = {device: guest for mine, _refused in ended for device, guest in mine.items()}
    # Every device has one owner, and the definitions hold what the processes hold.
    assert len(held) == sum(len(mine) for mine, _refused in ended)
    assert check(daemon) == held
    # There was something to see, and to refuse.
    assert looks > 3
    assert sum(refused for _mine, refused in ended) > 0
    assert {*held} <= {*DEVICES}
    for number, (mine, _refused) in enumerate(ended):
        with connect(uris[number % 2]) as connection:
            for device, guest in mine.items():
                assert by_call(connection, "detach", guest, device)
    assert {name: str(daemon.domain_xml(name)) for name in GUESTS} == before


def has_the_lock_open(pid):
    """Return whether a process waits for the host lock, or holds it."""
    with contextlib.suppress(FileNotFoundError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.readlink().parent == host_lock.FOLDER:
                    return True
    return False


@pytest.mark.parametrize("delay_s", [0.0, 0.005, 0.01, 0.015, 0.02])
def test_a_killed_command_leaves_the_old_or_the_new(lab_daemon, daemon, delay_s):
    guest, device = GUESTS[0], DEVICES[0]
    old = daemon.domain_xml(guest)
    assert by_call(daemon, "attach", guest, device)
    new = str(daemon.domain_xml(guest))
    daemon.define(old)
    command = [sys.executable, "-m", "vmm_msi", "attach", "--connect", lab_daemon.uri, guest]
    command += [str(device), "--host", str(HOST_FILE), "--backend", "sim"]
    environment = {key: text for key, text in os.environ.items() if key != "VMM_MSI_CONFIG"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        while child.poll() is None and not has_the_lock_open(child.pid):
            time.sleep(0.0005)
        time.sleep(delay_s)
        child.kill()
    # libvirt finishes the call that it began; give it the time to.
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        with host_lock.held(daemon.hostname()):
            text = str(daemon.domain_xml(guest))
        assert text in (str(old), new)
        time.sleep(0.05)
    # The next command continues from either.
    if text == str(old):
        assert by_call(daemon, "attach", guest, device)
    assert by_call(daemon, "detach", guest, device)
    assert str(daemon.domain_xml(guest)) == str(old)
