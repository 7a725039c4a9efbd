"""Findings about devices on QEMU's command line."""

import pytest
from doctor.cases import HOST, A, B
from doctor.guest_cases import case_of, changed, ids, only, rendered
from domxml.test_qemu_arguments import PORT, PXB, VSMMU, of_devices

from vmm_msi.doctor.finding import Severity

NAMESPACE = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
DEVICE = f"vfio-pci,host={B},bus=pcie.port1,iommufd=iommufd0"
WITHOUT_IOMMUFD = DEVICE.replace(",iommufd=iommufd0", "")


def with_words(*words):
    """Return the guest with device A in libvirt's elements, and these words."""
    args = "".join(f"<qemu:arg value='{word}'/>" for word in words)
    line = f"<qemu:commandline {NAMESPACE}>{args}</qemu:commandline>"
    xml = changed(rendered(A), ("</domain>", f"{line}</domain>"))
    return case_of(xml, devices=tuple(hostdev.host for hostdev in xml.assigned()))


def test_a_device_and_its_vsmmu():
    case = with_words(*of_devices(PXB, VSMMU, PORT, DEVICE))
    finding = only(case, "qemu-commandline")
    assert (finding.severity, finding.subject) == (Severity.WARNING, str(B))
    assert [evidence.what for evidence in finding.evidence] == [
        f"-device vfio-pci, {B} on pcie.port1",
        "its vSMMU, accelerated, of bus pcie.1",
    ]
    assert not [name for name in ids(case) if name.startswith("error")]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((PXB, VSMMU.replace("=on", "=off"), PORT, DEVICE), "error no-accel"),
        ((PXB, VSMMU, PORT, WITHOUT_IOMMUFD), "error hostdev-without-iommufd"),
        ((PXB, VSMMU, PORT), "error empty-vsmmu"),
        ((PXB, VSMMU, PORT, DEVICE, "nvme,bus=pcie.port1"), "error emulated-behind-vsmmu"),
        ((PXB, VSMMU.replace("pcie.1", "pcie.port1"), PORT, DEVICE), "error misplaced-vsmmu"),
        ((DEVICE.replace("bus=pcie.port1,", ""),), "note hostdev-not-behind-vsmmu"),
    ],
)
def test_the_rules_about_vsmmus_apply(values, expected):
    case = with_words(*of_devices(*values))
    assert expected in ids(case)


@pytest.mark.parametrize("words", [("-readconfig", "a.cfg"), ("-device", "vfio-pci,fd=7")])
def test_words_that_are_not_examined(words):
    finding = only(with_words(*words), "qemu-commandline")
    assert (finding.severity, finding.subject) == (Severity.UNKNOWN, "guest guest0")
    assert finding.evidence[0].what.startswith(f"{words[0]}: ")


def test_a_vsmmu_may_have_devices_that_are_not_examined():
    case = with_words(*of_devices(PXB, VSMMU, PORT, "vfio-pci,fd=7,bus=pcie.port1"))
    assert not [name for name in ids(case) if name.startswith("error")]


def test_properties_that_qemu_refuses():
    vsmmu = VSMMU.replace("accel=on", "accel=on,ats=auto,ssidsize=33")
    finding = only(with_words(*of_devices(PXB, vsmmu, PORT, DEVICE)), "qemu-refuses")
    assert "Parameter 'ssidsize' does not accept value '33'" in finding.consequence


def test_other_words():
    assert HOST.device_by_address[A]
    case = with_words("-device", "virtio-rng-pci", "-global", "virtio-net-pci.mq=on")
    assert not [name for name in ids(case) if "qemu-commandline" in name]


EACH = rendered(A, B, strategy="multi-its:mode=vsmmu,iommufd=each")
GIB = 1 << 30


def test_further_iommufd_objects():
    finding = only(case_of(EACH), "iommufd-objects")
    assert finding.severity is Severity.WARNING
    objects, memory = map(str, finding.evidence)
    assert objects.endswith("-object vmm-msi-iommufd1")
    assert memory.endswith(f"{4 * GIB} bytes, pinned once for each object: {8 * GIB} bytes")
    # libvirt: RAM for each of two devices, and 1 GiB.
    assert f"{4 * GIB} bytes of RAM count for QEMU's user" in finding.consequence
    assert f"limit of locked memory ({9 * GIB} bytes)" in finding.consequence
    assert "warning iommufd-objects" not in ids(case_of(rendered(A, B)))


def test_slots_of_two_iommufd_objects_do_not_depend_on_the_order():
    assert "note slot-order" in ids(case_of(rendered(A, B)))
    assert "note slot-order" not in ids(case_of(EACH))


@pytest.mark.parametrize(("limit", "severity"), [("7", Severity.ERROR), ("8", Severity.WARNING)])
def test_a_hard_limit_below_what_two_further_objects_pin(limit, severity):
    third = '<qemu:arg value=\'{"qom-type":"iommufd","id":"mine"}\'/>'
    tune = f"<memtune><hard_limit unit='GiB'>{limit}</hard_limit></memtune><vcpu>"
    xml = changed(
        EACH,
        ("<vcpu>", tune),
        ("</qemu:commandline>", f"<qemu:arg value='-object'/>{third}</qemu:commandline>"),
    )
    finding = only(case_of(xml), "memlock")
    assert finding.severity is severity
    assert f"{8 * GIB} bytes, all pinned" in str(finding.evidence[1])
