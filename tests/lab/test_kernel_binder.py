"""``vmm-msi watch`` on a kernel with guest MSI bindings: a real guest, killed services.

``make lab-guest`` kills the service more often (``guest_life.py``).
"""

from __future__ import annotations

import json

import pytest
from lab.kill_points import kill_in_every_phase
from lab.watched_guest import GDB, GIOVA, LONG_S, WORDS, watched_guest

from vmm_msi.types import Iova

pytestmark = [pytest.mark.lab_root, pytest.mark.timeout(3600)]

KILLS = 12


@pytest.fixture(scope="module")
def guest(lab_root, tmp_path_factory):
    """A guest that is off, with two drives that ``direct`` binds."""
    with watched_guest(tmp_path_factory.mktemp("guest") / "log.txt") as guest:
        yield guest


def test_a_service_that_is_killed_converges(guest):
    """The tests of this module share the guest; this one starts it."""
    print(*kill_in_every_phase(guest, KILLS), sep="\n")


def test_a_wrong_binding_is_repaired(guest):
    guest.watch()
    for device in guest.status():
        assert device["backend"] == "kernel"
        assert device["kernel_bindings"] == [
            {
                "giova": hex(GIOVA),
                "gdb": hex(GDB),
                "page_shift": 12,
                "hdb_page": hex(GDB),
                "state": "used",
            }
        ]
        assert device["measured"]["programmed_iovas"] == [str(Iova(GIOVA + 0x40))]
    # Withdrawn in use, another gIOVA, another gDB.
    name = guest.present[-1]
    for command in (
        f"unbind {name} {GIOVA:#x}",
        f"bind {name} 0xffff0000 {GDB:#x} 12",
        f"bind {name} {GIOVA:#x} 0x8091000 12",
    ):
        guest.bindings(command)
        guest.converged()
    events = [(e["event"], e.get("source")) for e in guest.stop_watch() if e.get("device")]
    assert events == [
        ("kernel-bound", "guest"),
        ("giova-corrected", "guest"),
        ("kernel-bound", "guest"),
    ]
    guest.work()


def test_a_guest_without_rmr_loses_nothing(guest):
    """Nothing but the binding serves it, from its first instruction to the unload of a driver."""
    guest.runner.define_without_rmr(guest.devices, "direct", WORDS)
    guest.watch()
    guest.link.call("start", paused=True, timeout_s=LONG_S)
    guest.wait_for(lambda: guest.states() == ["pending"] * len(guest.devices))
    guest.link.call("resume", timeout_s=LONG_S)
    guest.converged()
    guest.work()
    assert guest.faults() == ([], [])
    assert guest.polled() == []
    # Its driver is unloaded and loaded; the device is removed and enumerated again.
    for again in (False, True):
        address = guest.address(guest.present[-1])
        guest.runner.guest("reload-driver", address=address, enumerate_again=again)
        guest.converged()
        guest.work()
    assert guest.faults() == ([], [])
    assert guest.polled() == []


def test_a_driver_with_another_giova_is_followed(guest):
    """VFIO inside the guest, which an RMR forbids: its kernel has the MSI page at 0x8000000."""
    device = guest.present[-1]
    assert guest.runner.guest("take", address=guest.address(device), use_s=5.0) == ""
    guest.converged()
    guest.work()
    lines = guest.link.call("watch-log").splitlines()
    events = [json.loads(line) for line in lines if '"giova-corrected"' in line]
    assert [(e["device"], e["before"], e["giova"]) for e in events[-2:]] == [
        (str(device), hex(GIOVA), "0x8000000"),
        (str(device), "0x8000000", hex(GIOVA)),
    ]


def test_a_withdrawal_is_seen_explained_and_repaired(guest):
    """The guest of the test before: without RMR."""
    device = guest.present[-1]
    guest.link.call("pause-watch")
    guest.bindings(f"unbind {device} {GIOVA:#x}")
    assert guest.read(1, device) == (1, 0, 0)
    host, inside = guest.faults()
    fault = f"F_TRANSLATION client: {guest.address(device)} sid: {device.rid:#x} ssid: 0x0"
    assert host == []
    assert f"{fault} iova: 0x8000040 ipa: 0x0" in inside[-1]
    explained = " ".join(" ".join(guest.runner._explained(inside, "--in-guest")).split())
    assert "missing binding: the guest's gIOVA -> 0x8090000" in explained
    assert "start vmm-msi watch on the host" in explained
    assert f"{device}: the kernel is to bind its doorbell and does not" in guest.command("status")
    guest.link.call("resume-watch")
    guest.converged()
    guest.work()
    events = [event for event in guest.stop_watch() if event.get("device") == str(device)]
    assert (events[-1]["event"], events[-1]["source"]) == ("kernel-bound", "guest")
