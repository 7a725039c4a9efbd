"""``vmm-msi watch`` beside a guest's whole life: ``make lab-guest``, 5 minutes.

It is killed 50 times; a guest starts another kernel by kexec.

``KILLS`` is the number of kills, ``VMM_MSI_SEED`` the seed of the moments (1).
"""

from __future__ import annotations

import os

import pytest
from lab.kill_points import kill_in_every_phase
from lab.watched_guest import GIOVA, LONG_S, watched_guest

pytestmark = [pytest.mark.lab_root, pytest.mark.timeout(3600)]


def test_a_service_that_is_killed_at_50_points_converges(lab_root, tmp_path, capsys):
    with watched_guest(tmp_path / "log.txt") as guest:
        lines = kill_in_every_phase(guest, int(os.environ.get("KILLS", "50")))
    with capsys.disabled():
        print("", *lines, sep="\n")


@pytest.mark.parametrize("rmr", [True, False])
def test_a_kernel_that_another_one_starts_is_followed(lab_root, tmp_path, capsys, rmr):
    """The new kernel gives MSIs the highest IOVA of the domain; nothing resets the guest."""
    with watched_guest(tmp_path / "log.txt") as guest:
        guest.define_with_kernel(rmr=rmr)
        guest.watch()
        guest.link.call("start", timeout_s=LONG_S)
        guest.converged()
        guest.work()
        guest.runner.guest("load-kernel", image="/Image", words="iommu.forcedac=1")
        guest.link.call("restart", how="start-kernel", timeout_s=LONG_S)
        (giova,) = {
            address & ~0xFFF
            for device in guest.present
            for address in guest.runner.guest("msi-addresses", address=guest.address(device))
        }
        assert giova > 1 << 32
        guest.converged(giova)
        guest.work()
        events = [e for e in guest.stop_watch() if e["event"] == "giova-corrected"]
    assert [(e["device"], e["before"], e["giova"]) for e in events] == [
        (str(device), hex(GIOVA), hex(giova)) for device in guest.present
    ]
    with capsys.disabled():
        print(f"\nrmr {rmr}: gIOVA {giova:#x}, corrected after", *(e["seconds"] for e in events))
