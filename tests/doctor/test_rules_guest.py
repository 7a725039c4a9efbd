"""Findings about a guest as a whole; a rendered guest is the healthy one."""

import pytest
from doctor.cases import A, B, with_function
from doctor.guest_cases import GUEST, case_of, changed, ids, only, rendered

from vmm_msi.config import Choice
from vmm_msi.doctor.case import Software
from vmm_msi.doctor.finding import Severity
from vmm_msi.domxml.support import Version
from vmm_msi.domxml.template import nested_guest
from vmm_msi.types import SW_MSI_WINDOW, ReservedKind, ReservedRegion

HEALTHY = rendered(A)
GIB = 1 << 30


def test_a_rendered_guest_is_healthy():
    assert ids(case_of(HEALTHY)) == ["note rmr-needed", "note rmr-direct", "note no-migration"]
    assert ids(case_of(rendered(A, B))) == [
        "note rmr-needed",
        "note rmr-direct",
        "note slot-order",
        "note no-migration",
    ]


@pytest.mark.parametrize(
    ("changes", "name", "where", "what"),
    [
        (
            [("arch='aarch64'", "arch='x86_64'")],
            "guest-arch",
            "/domain/os/type",
            "arch is 'x86_64'",
        ),
        (
            [("machine='virt'", "machine='sbsa-ref'")],
            "guest-machine",
            "/domain/os/type",
            "machine is 'sbsa-ref'",
        ),
        (
            [("<gic version='3'/>", "<gic version='2'/>")],
            "guest-gic",
            "/domain/features/gic",
            "<gic version> is '2'",
        ),
        (
            [("<gic version='3'/>", ""), ("type='kvm'", "type='qemu'")],
            "guest-gic",
            "/domain/features/gic",
            "is not given",
        ),
        (
            [("<gic version='3'/>", "<gic version='host'/>"), ("type='kvm'", "type='qemu'")],
            "guest-gic",
            "/domain/features/gic",
            "<gic version> is 'host'",
        ),
        ([("<acpi/>", "")], "no-acpi", "/domain/features/acpi", "<acpi/> is missing"),
        (
            [("<os firmware='efi'>", "<os>")],
            "acpi-without-uefi",
            "/domain/os",
            "firmware is missing",
        ),
        ([("type='kvm'", "type='qemu'")], "guest-kvm", "/domain", "domain type is 'qemu'"),
    ],
)
def test_a_guest_that_cannot_be_nested(changes, name, where, what):
    finding = only(case_of(changed(HEALTHY, *changes)), name)
    assert (finding.severity, finding.subject) == (Severity.ERROR, f"guest {GUEST}")
    (evidence,) = finding.evidence
    assert evidence.where == f"{GUEST}.xml: {where}"
    assert what in evidence.what


@pytest.mark.parametrize("gic", ["", "<gic/>", "<gic version='host'/>"])
def test_a_kvm_guest_gets_the_newest_gic_of_the_host(gic):
    case = case_of(changed(HEALTHY, ("<gic version='3'/>", gic)))
    assert ids(case) == ["note rmr-needed", "note rmr-direct", "note no-migration"]


def test_a_simulated_guest_needs_no_kvm():
    assert "error guest-kvm" not in ids(case_of(rendered(A, kind="test")))


def test_acpi_does_not_matter_to_a_strategy_without_an_rmr():
    xml = changed(HEALTHY, ("<acpi/>", ""))
    assert "note no-acpi" in ids(case_of(xml, choice=Choice("direct")))


def test_a_missing_part_of_the_record():
    xml = changed(HEALTHY, ("<driver pciBus='1' accel='on'/>", "<driver pciBus='1'/>"))
    finding = only(case_of(xml), "part-gone")
    assert str(finding.evidence[0]) == (
        f"{GUEST}.xml: accel='on' of the <iommu model='smmuv3'> of the pcie-expander-bus with "
        "index 1 is missing from the definition"
    )


@pytest.mark.parametrize(
    ("wrong", "severity", "remedy"),
    [
        ("ssidSize='4'", Severity.ERROR, "Use ssidsize instead"),
        ("stage='nested'", Severity.WARNING, "Remove it"),
    ],
)
def test_xml_that_libvirt_drops_silently(wrong, severity, remedy):
    xml = changed(HEALTHY, ("accel='on'/>", f"accel='on' {wrong}/>"))
    finding = only(case_of(xml), "xml-dropped")
    assert finding.severity is severity
    assert str(finding.evidence[0]) == f"{GUEST}.xml: /domain/devices/iommu/driver: {wrong}"
    assert finding.remedy == f"{remedy}, and define guests with virsh define --validate."


@pytest.mark.parametrize(
    ("base", "kind", "name"),
    [
        (0x4000_0000, ReservedKind.SW_MSI, "guest-ram-in-msi-window"),
        (0x8000_0000, ReservedKind.DIRECT, "guest-ram-reserved"),
        (0x8000_0000, ReservedKind.RESERVED, "guest-ram-reserved"),
    ],
)
def test_ram_at_reserved_iovas(base, kind, name):
    region = ReservedRegion(base, 1 << 20, kind)
    finding = only(with_function(case_of(HEALTHY), A, reserved=(region,)), name)
    assert finding.severity is Severity.ERROR
    assert str(finding.evidence[0]) == f"{GUEST}.xml: /domain/memory: RAM 0x40000000-0x13fffffff"
    assert finding.evidence[1].what == str(region)


@pytest.mark.parametrize(
    ("base", "kind"),
    [(0x8000_0000, ReservedKind.DIRECT_RELAXABLE), (0x1_4000_0000, ReservedKind.RESERVED)],
    ids=["relaxable", "beside"],
)
def test_ram_outside_of_reserved_iovas(base, kind):
    case = with_function(
        case_of(HEALTHY), A, reserved=(SW_MSI_WINDOW, ReservedRegion(base, 1 << 20, kind))
    )
    assert ids(case) == ["note rmr-needed", "note rmr-direct", "note no-migration"]


@pytest.mark.parametrize(
    ("memory", "base", "element"),
    [
        ("<maxMemory slots='2' unit='GiB'>8</maxMemory>", 0x1_8000_0000, "/domain/maxMemory"),
        ("<maxMemory slots='2' unit='GiB'>8</maxMemory>", 0x2_7FF0_0000, "/domain/maxMemory"),
    ],
    ids=["hot-plugged", "with a GiB for each slot"],
)
def test_hot_plugged_memory(memory, base, element):
    """4 GiB start at 1 GiB, hot-plugged memory at 5 GiB: 4 GiB and 1 GiB for each slot."""
    xml = changed(HEALTHY, ("<vcpu>", f"{memory}<vcpu>"))
    region = ReservedRegion(base, 1 << 20, ReservedKind.RESERVED)
    finding = only(with_function(case_of(xml), A, reserved=(region,)), "guest-ram-reserved")
    assert str(finding.evidence[0]) == (f"{GUEST}.xml: {element}: RAM 0x140000000-0x2bfffffff")


def test_a_memory_device_with_a_base_address():
    module = (
        "<memory model='dimm'><target><size unit='MiB'>512</size></target>"
        "<address type='dimm' slot='0' base='0x8000000'/></memory>"
    )
    xml = changed(HEALTHY, ("<serial ", f"{module}<serial "))
    finding = only(case_of(xml), "guest-ram-in-msi-window")
    assert str(finding.evidence[0]) == (
        f"{GUEST}.xml: /domain/devices/memory: RAM 0x8000000-0x27ffffff"
    )


@pytest.mark.parametrize(
    ("limit", "severity"),
    [("3", Severity.ERROR), ("4", Severity.WARNING), ("5", None), ("9007199254740991", None)],
)
def test_a_hard_limit(limit, severity):
    unit = "GiB" if len(limit) == 1 else "KiB"
    tune = f"<memtune><hard_limit unit='{unit}'>{limit}</hard_limit></memtune>"
    case = case_of(changed(HEALTHY, ("<vcpu>", f"{tune}<vcpu>")))
    if severity is None:
        assert ids(case) == ["note rmr-needed", "note rmr-direct", "note no-migration"]
        return
    finding = only(case, "memlock")
    assert finding.severity is severity
    assert [str(evidence) for evidence in finding.evidence] == [
        f"{GUEST}.xml: /domain/memtune/hard_limit: {int(limit) * GIB} bytes",
        f"{GUEST}.xml: /domain/memory: {4 * GIB} bytes, all pinned",
    ]
    assert str(5 * GIB) in finding.remedy


SESSION = Software(
    Version(12, 8),
    Version(11, 1),
    "QEMU",
    source="libvirt at qemu:///session",
    daemon_locked_memory=8 << 20,
)


def test_a_daemon_without_privileges():
    fdgroup = changed(HEALTHY, ("<iommufd enabled='yes'/>", "<iommufd enabled='yes' fdgroup='g'/>"))
    finding = only(case_of(fdgroup, software=SESSION), "memlock")
    assert str(finding.evidence[0]) == (
        "libvirt at qemu:///session: its daemon may lock 8388608 bytes"
    )
    assert str(5 * GIB) in finding.consequence
    locked = changed(fdgroup, ("<vcpu>", "<memoryBacking><locked/></memoryBacking><vcpu>"))
    assert "error memlock" not in ids(case_of(locked, software=SESSION))


def test_free_ports_without_memory():
    xml = rendered(A, spare_ports=1, spare_memory=0)
    finding = only(case_of(xml), "hotplug-bar-loss")
    assert finding.severity is Severity.WARNING
    assert finding.evidence[0].what == ("free root ports without reserved prefetchable memory: 3")
    assert "warning hotplug-bar-loss" not in ids(case_of(rendered(A, spare_ports=1)))


def test_a_guest_without_a_vsmmu_can_migrate():
    assert ids(case_of(nested_guest(GUEST, memory=GIB))) == []


def test_without_plugins_the_guest_is_still_checked():
    xml = changed(HEALTHY, ("<acpi/>", ""))
    assert ids(case_of(xml, plugins=None)) == ["error no-acpi", "note no-migration"]
