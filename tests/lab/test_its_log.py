"""MSIs that reached the ITS, read from QEMU's log."""

from __future__ import annotations

import pytest

from vmm_msi.errors import LabError
from vmm_msi.lab.guest.its_log import ItsLog, Msi

LINE = (
    "gicv3_its_translation_write GICv3 ITS TRANSLATER write: offset 0x40 data 0x{:x} size 4 "
    "requester_id 0x{:x}\n"
)


def test_each_read_counts_only_new_lines(tmp_path):
    path = tmp_path / "its.log"
    path.write_text(LINE.format(0, 0x1100) + "something else\n" + LINE.format(1, 0x1100) * 2)
    log = ItsLog(path)
    assert log.new() == {Msi(0x1100, 0): 1, Msi(0x1100, 1): 2}
    assert log.new() == {}
    with path.open("a") as file:
        file.write(LINE.format(3, 0x1180) + LINE.format(3, 0x1180)[:-9])
        file.flush()
        assert log.new() == {Msi(0x1180, 3): 1}
        file.write(LINE.format(3, 0x1180)[-9:])
    assert log.new() == {Msi(0x1180, 3): 1}


def test_missing_log_is_named(tmp_path):
    with pytest.raises(
        LabError, match=r"^reading the log of MSIs at the ITS: .*/its\.log: No such file"
    ):
        ItsLog(tmp_path / "its.log").new()
