"""Guests without a nested vSMMU: errors are about what a guest has, or what was asked for."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from doctor.cases import HEALTHY as HOST_CASE
from doctor.cases import A, B, with_hardware, with_kernel, with_option
from doctor.guest_cases import case_of, ids

from vmm_msi.doctor import rules
from vmm_msi.doctor.finding import Severity
from vmm_msi.domxml.libvirt_domain import DomainXml

#: Type, architecture, machine and OS type of guests that libvirt runs.
KINDS = [
    ("kvm", "x86_64", "pc-q35-9.2", "hvm"),
    ("kvm", "x86_64", "pc-i440fx-9.2", "hvm"),
    ("kvm", "x86_64", "microvm", "hvm"),
    ("qemu", "i686", "pc", "hvm"),
    ("kvm", "ppc64le", "pseries-9.2", "hvm"),
    ("qemu", "ppc64", "pseries", "hvm"),
    ("kvm", "s390x", "s390-ccw-virtio-9.2", "hvm"),
    ("qemu", "riscv64", "virt", "hvm"),
    ("qemu", "loongarch64", "virt", "hvm"),
    ("kvm", "aarch64", "virt-9.2", "hvm"),
    ("qemu", "aarch64", "virt", "hvm"),
    ("qemu", "aarch64", "sbsa-ref", "hvm"),
    ("qemu", "armv7l", "virt", "hvm"),
    ("qemu", "armv7l", "vexpress-a15", "hvm"),
    ("lxc", "x86_64", "", "exe"),
    ("xen", "x86_64", "xenpv", "linux"),
    ("xen", "x86_64", "xenfv", "hvm"),
    ("bhyve", "x86_64", "", "hvm"),
    ("vz", "x86_64", "", "hvm"),
    ("hvf", "aarch64", "virt", "hvm"),
    ("test", "i686", "", "hvm"),
]
FEATURES = ["", "<acpi/><apic/>", "<gic version='2'/>"]
PARTS = {
    "bare": "",
    "emulated": (
        "<disk type='file' device='disk'><source file='/d'/><target dev='vda' bus='virtio'/></disk>"
        "<interface type='user'><model type='virtio'/></interface><memballoon model='none'/>"
    ),
    "usb": (
        "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/><product id='0x2'/>"
        "</source></hostdev>"
    ),
    "mediated": (
        "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>"
        "<address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source></hostdev>"
    ),
}
HOSTDEV = (
    "<hostdev mode='subsystem' type='pci' managed='yes'><source>"
    "<address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source></hostdev>"
)


def guest(kind, features="", parts=""):
    type_, arch, machine, os_type = kind
    attribute = f" machine='{machine}'" if machine else ""
    return DomainXml.parse(
        f"<domain type='{type_}'><name>g</name><memory unit='GiB'>2</memory><vcpu>1</vcpu>"
        f"<os><type arch='{arch}'{attribute}>{os_type}</type></os>"
        f"<features>{features}</features><devices>{parts}</devices></domain>",
        "g.xml",
    )


def broken_host(case):
    """A kernel that cannot nest, on an SMMU that cannot either."""
    for option in ("IOMMUFD", "ARM_SMMU_V3_IOMMUFD", "VFIO_DEVICE_CDEV", "VFIO_PCI"):
        case = with_option(case, option, None)
    case = with_kernel(case, release="6.1.0", dev_iommu=False)
    return with_hardware(with_hardware(case, 0, s2fwb=False, stage2=False), 1, nested=False)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_guest_without_assigned_devices_has_no_findings(kind):
    for features, parts in product(FEATURES, PARTS.values()):
        case = case_of(guest(kind, features, parts))
        assert ids(case) == []
        assert ids(broken_host(case)) == []


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_an_assigned_device_without_a_vsmmu_is_no_error(kind):
    for features in FEATURES:
        assert ids(case_of(guest(kind, features, HOSTDEV))) == ["note hostdev-not-behind-vsmmu"]


def test_an_assigned_device_needs_vfio_and_no_nesting():
    case = broken_host(case_of(guest(KINDS[0], parts=HOSTDEV)))
    assert ids(case) == ["error kernel-no-vfio-pci", "note hostdev-not-behind-vsmmu"]
    iommufd = HOSTDEV.replace("<source>", "<driver iommufd='yes'/><source>")
    assert ids(broken_host(case_of(guest(KINDS[0], parts=iommufd)))) == [
        "error kernel-no-iommufd",
        "error kernel-no-vfio-pci",
        "note hostdev-not-behind-vsmmu",
    ]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_device_that_was_asked_for_needs_a_vsmmu(kind):
    case = case_of(guest(kind), devices=(A,))
    expected = set()
    if kind[1] != "aarch64":
        expected.add("guest-arch")
    if kind[2].partition("-")[0] != "virt":
        expected.add("guest-machine")
    if kind[0] != "kvm":
        expected.add("guest-gic")
    if kind[0] not in {"kvm", "test"}:
        expected.add("guest-kvm")
    assert expected | {"no-acpi"} <= errors(case)
    assert errors(replace(case, guest=None)) == set()


def errors(case):
    return {finding.id for finding in rules.examine(case) if finding.severity is Severity.ERROR}


def test_only_the_device_that_was_asked_for_needs_nesting():
    """The guest has B without a vSMMU; A is to be attached behind one."""
    at_b = HOSTDEV.replace("domain='0x0000'", "domain='0x0001'")
    case = case_of(guest(("kvm", "aarch64", "virt", "hvm"), parts=at_b), devices=(A, B))
    assert list(case.nested) == [A]


@pytest.mark.parametrize("type_", ["kvm", "qemu"])
def test_an_emulated_vsmmu_for_emulated_devices_needs_its_machine_alone(type_):
    """QEMU runs it with any GIC, with a device tree and without KVM."""
    vsmmu = "<iommu model='smmuv3'/>"
    assert errors(case_of(guest((type_, "aarch64", "virt", "hvm"), parts=vsmmu))) == set()
    assert errors(case_of(guest((type_, "aarch64", "sbsa-ref", "hvm"), parts=vsmmu))) == {
        "guest-machine"
    }
    assert errors(case_of(guest((type_, "x86_64", "q35", "hvm"), parts=vsmmu))) == {
        "guest-arch",
        "guest-machine",
    }


@pytest.mark.parametrize("model", ["virtio", "intel", "amd"])
def test_an_iommu_of_another_model(model):
    xml = guest(KINDS[0], parts=f"<iommu model='{model}'/>{HOSTDEV}")
    (finding,) = rules.examine(replace(case_of(xml), software=HOST_CASE.software))
    assert (finding.id, finding.severity) == ("hostdev-not-behind-vsmmu", Severity.NOTE)
    assert finding.evidence[0].what == f"model='{model}'"
    expected = "virtio-iommu translates" if model == "virtio" else f"'{model}' translates"
    assert expected in finding.consequence
    assert "Only the host" not in finding.consequence
