"""The texts of the tables are in the programs themselves, so that one that changes is noticed."""

from __future__ import annotations

import re
import subprocess

import pytest
from conftest import SUITES, root_of, unavailable

from vmm_msi.explain.explainer import explain
from vmm_msi.explain.explanation import Program
from vmm_msi.explain.known_texts import forms
from vmm_msi.explain.log_context import LogContext
from vmm_msi.lab.build import images

#: What is not in the binary as it stands in the table, and why.
ELSEWHERE = {
    "Could not open '/dev/iommu'": "QEMU puts the name in",
    "Could not open '/dev/vfio/vfio'": "the same",
    "Could not open '/dev/vfio/%d'": "the same",
    "Could not open '/dev/vfio/noiommu-%d'": "the same",
    "Could not open '/dev/vfio/devices/vfio%d'": "the same",
    "No usable S1 MSI mapping found": "the series of 2018-2021",
    "Nested mode forbids to attach devices using different physical MSI doorbells": "the same",
    "MSI S2 mapping failed (%d)": "the same",
    "no MSI binding found": "the same",
    "Adding kernel taint for vfio-noiommu group on device": "CONFIG_VFIO_NOIOMMU",
}
#: Not built into the kernel of the emulated host, which has an SMMUv3 without CMDQV.
NOT_BUILT = ("smmuv2-", "cmdqv-")
#: Put together from several strings of the kernel.
COMPOSED = ("selinux-denied", "apparmor-denied", "io-pgtable", "qemu-intx")
#: A name in a text that the program puts in, and the text as the program has it.
NAMES = {
    r"probe with driver \S+ failed with error \S+": "probe with driver %s failed with error %d",
    r"bridge window %pR": "%s %pR",
}


def missing(program, *paths):
    data = [path.read_bytes() for path in paths]
    unknown = []
    for form in forms():
        if form.text.program is not program or form.format in {*ELSEWHERE, *form.text.older}:
            continue
        if form.text.id.startswith((*NOT_BUILT, *COMPOSED)):
            continue
        format_ = form.format
        for pattern, in_program in NAMES.items():
            format_ = re.sub(pattern, in_program, format_)
        if not any(format_.encode() in binary for binary in data):
            unknown.append(form.format)
    return unknown


@pytest.mark.lab_root
def test_texts_of_qemu(lab_root):
    assert missing(Program.QEMU, lab_root.path / "usr/bin/qemu-system-aarch64") == []


BUS = ("-device", "pxb-pcie,id=p,bus_nr=16")
SMMU = "arm-smmuv3,primary-bus=p,id=s"
#: Arguments that QEMU refuses on any machine, and the explanation of its message.
REFUSED = [
    ((*BUS, "-device", f"{SMMU},accel=on"), "qemu-accel-machine"),
    ((*BUS, "-device", f"{SMMU},ats=on"), "qemu-accel-property"),
    ((*BUS, "-device", f"{SMMU},ssidsize=8"), "qemu-accel-property"),
    ((*BUS, "-device", f"{SMMU},oas=48"), "qemu-accel-property"),
    (("-device", "arm-smmuv3,id=s"), "qemu-smmu-place"),
    (("-device", "vfio-pci,host=0000:ff:1f.7"), "qemu-no-device"),
]


@pytest.mark.lab_root
@pytest.mark.parametrize(("arguments", "id_"), REFUSED, ids=lambda value: "".join(value[-1:]))
def test_messages_of_a_running_qemu(arguments, id_, lab_root):
    command = lab_root.outside("usr/bin/qemu-system-aarch64")
    command += ["-M", "virt", "-nodefaults", "-nic", "none", "-display", "none", "-S", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode
    (line,) = explain(done.stderr, LogContext()).lines
    assert line.explanation.id == id_
    if "vfio-pci" in arguments[-1]:
        assert str(line.explanation.devices[0].address) == "0000:ff:1f.7"


@pytest.mark.lab_root
def test_texts_of_libvirt(lab_root):
    (driver,) = lab_root.path.glob("usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so")
    library = driver.parent.parent.parent / "libvirt.so.0"
    assert missing(Program.LIBVIRT, driver, library) == []


#: Formats of releases before QEMU 7.2 and libvirt 9.0, which is as far as the suites go back.
EARLIER = {
    "SMMUv3 does not support notification on MAP: device %s will not function properly",
    "VFIO_MAP_DMA: %d",
    "VFIO_UNMAP_DMA: %d",
    "failed to open /dev/vfio/%d",
    "error opening /dev/vfio/%d",
    "vfio: failed to get group %d",
    "Unrecoverable error detected.",
    '/vfio-dev: failed to load "%s"',
    "failed to open /dev/vfio/noiommu-%d",
    "failed to set group container",
    "failed to set iommu for container",
    "IOMMU_IOAS_MAP failed: %m",
    "differs in Range Invalidation support",
    "memory listener initialization failed for container",
}


@pytest.mark.lab_root
@pytest.mark.parametrize(
    ("program", "pattern"),
    [
        (Program.QEMU, "usr/bin/qemu-system-aarch64"),
        (Program.LIBVIRT, "usr/lib/*/**/libvirt*.so*"),
    ],
)
def test_older_texts_are_those_of_older_releases(program, pattern):
    roots = [root_of(SUITES[release]).path for release in ("9.0", "11.3")]
    data = [path.read_bytes() for root in roots for path in root.glob(pattern)]
    formats = {older for form in forms() for older in form.text.older}
    known = {form.format for form in forms() if form.text.program is program}
    for older in (formats & known) - EARLIER:
        assert any(older.encode() in binary for binary in data), older


@pytest.mark.lab_root
def test_texts_of_the_kernel():
    lab_images = images.find_images()
    if lab_images is None:
        unavailable("no images of the emulated host: vmm-msi lab build makes them")
    assert missing(Program.KERNEL, lab_images.kernel) == []


def test_a_changed_text_is_reported(tmp_path):
    (tmp_path / "qemu").write_bytes(b"nothing of it")
    assert len(missing(Program.QEMU, tmp_path / "qemu")) > 50
