"""The lines of the kernel's log that are kept: those of its drivers for SMMU, ITS and VFIO."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmm_msi.host.files import UnreadableError
from vmm_msi.host.files import kernel_log as kernel_log_module
from vmm_msi.host.files.folder import FolderTree
from vmm_msi.host.files.in_memory import MemoryTree
from vmm_msi.host.files.kernel_log import MAX_LINES, kernel_log, records, select


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            b"6,812,1004567,-;arm-smmu-v3 x.0: oas 44-bit\n SUBSYSTEM=platform\n DEVICE=+x:y\n",
            "arm-smmu-v3 x.0: oas 44-bit",
        ),
        (b"6,1,2,-,caller=T1;ITS [mem 0x08080000-0x0809ffff]\n", "ITS [mem 0x08080000-0x0809ffff]"),
        (b"6,1,2,-;GICv3: 256 SPIs implemented\n", "GICv3: 256 SPIs implemented"),
        (
            b"6,1,2,-;pci 0000:10:00.0: Adding to iommu group 0\n",
            "pci 0000:10:00.0: Adding to iommu group 0",
        ),
        (b"4,1,2,-;ACPI: IORT: no SMMU\n", "ACPI: IORT: no SMMU"),
        (b"6,1,2,-;VFIO - User Level meta-driver version: 0.3\n", None),
        (b"6,1,2,-;igb 0000:01:00.0: eth0: MAC 02:00:00:00:00:01\n", ""),
        (b"30,1,2,-;vfio: a program writes this\n", ""),
        (b"12,1,2,-;arm-smmu-v3: so does another\n", ""),
        (b"no record", ""),
        (b"", ""),
    ],
)
def test_lines_of_known_drivers_are_kept(record, line):
    whole = record.partition(b";")[2].decode().rstrip("\n")
    assert select([record]) == ([whole] if line is None else [line] if line else [])


def test_beginning_and_end_of_a_long_log_are_kept():
    lines = [b"6,%d,0,-;iommu: %d\n" % (number, number) for number in range(3 * MAX_LINES)]
    selected = select([None, *lines])
    assert len(selected) == 2 * MAX_LINES
    assert (selected[0], selected[MAX_LINES - 1]) == ("iommu: 0", f"iommu: {MAX_LINES - 1}")
    assert (selected[MAX_LINES], selected[-1]) == (
        f"iommu: {2 * MAX_LINES}",
        f"iommu: {3 * MAX_LINES - 1}",
    )


def test_reading_stops_after_the_last_record():
    out, into = os.pipe2(os.O_NONBLOCK)
    try:
        os.write(into, b"6,1,2,-;iommu: x\n")
        assert list(records(out)) == [b"6,1,2,-;iommu: x\n"]
    finally:
        os.close(out)
        os.close(into)


def test_log_of_a_capture():
    tree = MemoryTree("x", {"/vmm-msi/kernel-log": b"iommu: a\niommu: b\n"})
    assert kernel_log(tree) == ["iommu: a", "iommu: b"]
    assert kernel_log(MemoryTree("x", {})) == []


def test_a_folder_has_no_log(tmp_path):
    assert kernel_log(FolderTree(tmp_path)) == []


def test_an_unreadable_log(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_log_module, "KMSG", f"{tmp_path}/a/kmsg")
    live = FolderTree(Path("/"))
    assert kernel_log(live) == []
    (tmp_path / "a").write_text("")
    with pytest.raises(UnreadableError, match=r"a/kmsg of this machine: Not a directory"):
        kernel_log(live)
