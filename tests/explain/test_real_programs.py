"""The texts of the tables are in the programs themselves, so that one that changes is noticed."""

from __future__ import annotations

import pytest
from conftest import SUITES, root_of, unavailable

from vmm_msi.explain.explanation import Program
from vmm_msi.explain.tables import forms
from vmm_msi.lab import images

#: What is not in the binary as it stands in the table, and why.
ELSEWHERE = {
    "Could not open '/dev/iommu'": "QEMU puts the name in",
    "only a single IOMMU device is supported": "libvirt before 11.10",
    "No usable S1 MSI mapping found": "the series of 2018-2021",
    "Nested mode forbids to attach devices using different physical MSI doorbells": "the same",
}
#: Not built into the kernel of the emulated host, which has an SMMUv3.
SMMUV2 = {"smmuv2-context-fault", "smmuv2-unknown-stream"}


def missing(program, *paths):
    data = [path.read_bytes() for path in paths]
    found = []
    for form in forms():
        if form.text.program is not program or form.format in ELSEWHERE:
            continue
        if program is Program.KERNEL and form.text.id in SMMUV2:
            continue
        if not any(form.format.encode() in each for each in data):
            found.append(form.format)
    return found


@pytest.mark.lab_root
def test_texts_of_qemu(lab_root):
    assert missing(Program.QEMU, lab_root.path / "usr/bin/qemu-system-aarch64") == []


@pytest.mark.lab_root
def test_texts_of_libvirt(lab_root):
    (driver,) = lab_root.path.glob("usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so")
    library = driver.parent.parent.parent / "libvirt.so.0"
    assert missing(Program.LIBVIRT, driver, library) == []


@pytest.mark.lab_root
def test_a_text_of_an_older_libvirt():
    (library,) = root_of(SUITES["11.3"]).path.glob("usr/lib/*/libvirt.so.0")
    assert b"only a single IOMMU device is supported" in library.read_bytes()


def test_texts_of_the_kernel():
    found = images.find_images()
    if found is None:
        unavailable("no images of the emulated host: vmm-msi lab build makes them")
    assert missing(Program.KERNEL, found.kernel) == []


def test_a_text_that_changes_is_noticed(tmp_path):
    (tmp_path / "qemu").write_bytes(b"nothing of it")
    assert len(missing(Program.QEMU, tmp_path / "qemu")) > 50
