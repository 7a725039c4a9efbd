"""Kill ``vmm-msi watch`` 50 times while a guest lives: ``make lab-guest``, 3 minutes.

``KILLS`` is the number, ``VMM_MSI_SEED`` the seed of the moments (1).
"""

from __future__ import annotations

import os

import pytest
from lab.kill_points import kill_in_every_phase
from lab.watched_guest import watched_guest

pytestmark = [pytest.mark.lab_root, pytest.mark.timeout(3600)]


def test_a_service_that_is_killed_at_50_points_converges(lab_root, tmp_path, capsys):
    with watched_guest(tmp_path / "log.txt") as guest:
        lines = kill_in_every_phase(guest, int(os.environ.get("KILLS", "50")))
    with capsys.disabled():
        print("", *lines, sep="\n")
