"""MSIs that reached the ITS, read from QEMU's log."""

from __future__ import annotations

import pytest

from vmm_msi.errors import LabError
from vmm_msi.lab.guest.its_log import ItsLog, Msi, counts_of
from vmm_msi.types import Pa

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


def test_msis_of_several_itses_are_counted_apart(tmp_path):
    path = tmp_path / "its.log"
    own, other = Pa(0x808_0000), Pa(0xB00_0000)
    lines = [
        (LINE.format(event, device).rstrip("\n"), its, number)
        for event, device, its, number in (
            (1, 0x1100, own, 3),
            (2, 0x1100, own, 1),
            (1, 0x1100, other, 2),
            (1, 0x1200, other, 4),
        )
    ]
    path.write_text("".join(f"{line} its {its:#x}\n" * number for line, its, number in lines))
    counts = ItsLog(path).new()
    assert counts[Msi(0x1100, 1, own)] == 3
    assert counts_of(0x1100, own, counts) == ({1: 3, 2: 1}, {other: 2})
    assert counts_of(0x1200, other, counts) == ({1: 4}, {})
    assert counts_of(0x1300, own, counts) == ({}, {})


def test_on_a_host_with_one_its_every_msi_lands():
    """The trace of Debian's QEMU does not name it."""
    assert counts_of(0x1100, Pa(0x808_0000), {Msi(0x1100, 1): 5}) == ({1: 5}, {})


def test_missing_log_is_named(tmp_path):
    with pytest.raises(
        LabError, match=r"^reading the log of MSIs at the ITS: .*/its\.log: No such file"
    ):
        ItsLog(tmp_path / "its.log").new()
