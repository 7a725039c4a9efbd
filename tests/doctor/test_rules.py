"""Findings about hosts with one fault, and none about healthy hosts.

Each case is the healthy host with one change, listed with all its findings.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

import doc_blocks
import pytest
from doctor.cases import (
    A2,
    HEALTHY,
    HOST,
    ITSES,
    SMMUS,
    A,
    B,
    function,
    hardware,
    host_device,
    with_device,
    with_function,
    with_hardware,
    with_host,
    with_kernel,
    with_option,
    with_parameter,
)

from vmm_msi.doctor import rules
from vmm_msi.doctor.case import Guest, KernelFacts
from vmm_msi.doctor.finding import Evidence, Severity
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.host.crosscheck import Disagreement
from vmm_msi.host.files.in_memory import MemoryTree
from vmm_msi.types import (
    SW_MSI_WINDOW,
    Firmware,
    Granule,
    Its,
    Pa,
    PciAddress,
    PciSegment,
    ReservedKind,
    ReservedMemory,
    ReservedRegion,
    TableError,
)

E, W, N, U = Severity
A_OTHER = PciAddress(0, 1, 0, 1)
TREE = MemoryTree(
    "host.tar.zst",
    {},
    {
        "/sys/class/iommu/smmu3.0x000000002b400000": "../../devices/a/iommu/smmu3.0x2b400000",
        "/sys/class/iommu/smmu3.0x000000002b500000": "../../devices/b/iommu/smmu3.0x2b500000",
    },
)
HALF_DRIVEN = MemoryTree("host", {}, {"/sys/class/iommu/smmu3.0x000000002b400000": "../x"})
RMR = ReservedMemory(0x8800_0000, 0x1000, 0, 0x100, 0x1FF)
DIRECT = ReservedRegion(0x8800_0000, 0x10000, ReservedKind.DIRECT)
RELAXABLE = replace(DIRECT, kind=ReservedKind.DIRECT_RELAXABLE)
HARDWARE = ReservedRegion(0x3005_0000, 0x10000, ReservedKind.HW_MSI)
MOVED = ReservedRegion(0x1000_0000, 0x10_0000, ReservedKind.SW_MSI)


#: The modules of the rules that are tested here.
OF_HOSTS = ("groups", "interrupts", "its", "kernel", "smmu", "sources", "streams", "window")

IDS = doc_blocks.finding_ids(*OF_HOSTS)


def examine(case):
    """Return the findings about the host, without those about a guest."""
    return [finding for finding in rules.examine(case) if finding.id in IDS]


def with_its(**fields):
    """The healthy host with its first ITS changed."""
    return with_host(HEALTHY, itses=(replace(ITSES[0], **fields), ITSES[1]))


def with_smmu(**fields):
    """The healthy host with its first SMMU changed and missing from the kernel's log."""
    known = {1: HEALTHY.kernel.smmus[1]}
    case = with_host(HEALTHY, smmus=(replace(SMMUS[0], **fields), SMMUS[1]))
    return with_kernel(case, smmus=known)


def with_neighbour(**fields):
    """The healthy host with a second function in the group of A."""
    case = with_function(HEALTHY, A, members=(A, A_OTHER))
    settings = {"members": (A, A_OTHER), **fields}
    return with_host(case, functions=(*case.host.functions, function(A_OTHER, **settings)))


def guest(case):
    return replace(case, guest=Guest(DomainXml.parse("<domain><name>g</name></domain>", "g")))


def many_doorbells(count, granule):
    """A host with ``count`` ITSes that have one device each."""
    itses = tuple(Its(n, Pa(0x4000_0000 + n * 0x20_0000)) for n in range(count))
    addresses = tuple(PciAddress(0, 1 + n, 0, 0) for n in range(count))
    devices = tuple(host_device(a, its=(n,), group=n) for n, a in enumerate(addresses))
    functions = tuple(function(a, group=n) for n, a in enumerate(addresses))
    case = with_host(HEALTHY, itses=itses, devices=devices, functions=functions, granule=granule)
    return replace(case, devices=addresses)


#: Changed cases, with id, severity and subject of each finding.
BROKEN = {
    "a missing device": (
        replace(HEALTHY, devices=(PciAddress(7, 0, 0, 0),)),
        [("device-missing", E, "0007:00:00.0")],
    ),
    "a root port": (
        with_function(HEALTHY, A, class_code=0x060400),
        [("device-is-bridge", E, str(A))],
    ),
    "a host bridge": (
        with_function(HEALTHY, A, class_code=0x060000),
        [("device-is-bridge", E, str(A))],
    ),
    "a device that no table has": (
        replace(with_function(HEALTHY, A_OTHER), devices=(A_OTHER,)),
        [("device-unknown", U, str(A_OTHER))],
    ),
    "a device tree without an SMMU and an ITS": (
        replace(
            with_host(
                HEALTHY,
                devices=(),
                functions=(),
                smmus=(),
                itses=(),
                firmware=Firmware.DEVICE_TREE,
            ),
            devices=(),
            devices_selected=False,
        ),
        [("no-smmu", W, "host"), ("no-its", W, "host")],
    ),
    "no iommufd": (with_option(HEALTHY, "IOMMUFD", None), [("kernel-no-iommufd", E, "host")]),
    "no nested SMMU": (
        with_option(HEALTHY, "ARM_SMMU_V3_IOMMUFD", None),
        [("kernel-no-nested-smmu", E, "host")],
    ),
    "no SMMU driver": (
        with_option(HEALTHY, "ARM_SMMU_V3", None),
        [("kernel-no-smmu-driver", E, "host")],
    ),
    "no VFIO nodes": (
        with_option(HEALTHY, "VFIO_DEVICE_CDEV", None),
        [("kernel-no-vfio-cdev", E, "host")],
    ),
    "no vfio-pci": (with_option(HEALTHY, "VFIO_PCI", None), [("kernel-no-vfio-pci", E, "host")]),
    "before nesting": (
        with_kernel(HEALTHY, release="6.12.41+deb13-arm64"),
        [("kernel-too-old", E, "host")],
    ),
    "before doorbells": (
        with_kernel(HEALTHY, release="6.14.11"),
        [("kernel-too-old", E, "host")],
    ),
    "no node": (with_kernel(HEALTHY, dev_iommu=False), [("no-dev-iommu", E, "host")]),
    "no configuration": (
        with_kernel(replace(HEALTHY, tree=TREE), options=None),
        [("kernel-config-unknown", U, "host")],
    ),
    "a description": (
        replace(HEALTHY, kernel=KernelFacts()),
        [("kernel-not-checked", U, "host")],
    ),
    "not root": (
        replace(HEALTHY, unreadable=(Evidence("/sys/firmware/fdt", "Permission denied"),)),
        [("not-root", U, "host")],
    ),
    "no tables": (
        with_host(
            with_host(HEALTHY, devices=(), smmus=(), itses=(), missing=("there is no IORT",)),
        ),
        [("no-tables", U, "host")],
    ),
    "disagreement": (
        replace(
            HEALTHY,
            disagreements=(Disagreement(str(A), (("IORT", "SMMU 0"), ("sysfs", "SMMU 1"))),),
        ),
        [("sources-disagree", W, str(A))],
    ),
    "an error in a table": (
        with_host(HEALTHY, table_errors=(TableError("IORT", "offset 0x9: wrong checksum"),)),
        [("table-errors", W, "firmware tables")],
    ),
    "no SMMU": (
        with_function(with_device(HEALTHY, A, smmu=None), A, iommu_group=None),
        [("no-smmu", E, str(A))],
    ),
    "an SMMU without a driver": (
        with_function(replace(HEALTHY, tree=HALF_DRIVEN), B, iommu_group=None),
        [("smmu-not-driven", E, "SMMU 1 (0x2b500000)")],
    ),
    "no IOMMU group": (
        with_function(HEALTHY, A, iommu_group=None),
        [("no-iommu-group", E, str(A))],
    ),
    "an SMMUv2": (with_smmu(version=2), [("smmu-version-2", E, "SMMU 0 (0x2b400000)")]),
    "no stage 1": (
        with_hardware(HEALTHY, 0, stage1=False, nested=False, s2fwb=False),
        [("smmu-no-stage1", E, "SMMU 0 (0x2b400000)")],
    ),
    "no stage 2": (
        with_hardware(HEALTHY, 1, stage2=False, nested=False, s2fwb=False),
        [("smmu-no-stage2", E, "SMMU 1 (0x2b500000)")],
    ),
    "an erratum": (
        with_hardware(HEALTHY, 1, nested=False, s2fwb=False),
        [("smmu-not-nested", E, "SMMU 1 (0x2b500000)")],
    ),
    "a description without nesting": (
        with_smmu(nested=False),
        [("smmu-not-nested", E, "SMMU 0 (0x2b400000)")],
    ),
    "no S2FWB": (
        with_hardware(HEALTHY, 0, s2fwb=False),
        [("smmu-no-s2fwb", E, "SMMU 0 (0x2b400000)")],
    ),
    "not coherent": (
        with_hardware(HEALTHY, 0, coherent=False),
        [("smmu-not-coherent", E, "SMMU 0 (0x2b400000)")],
    ),
    "a log without SMMUs": (
        with_kernel(replace(HEALTHY, tree=TREE), smmus={0: hardware()}),
        [("smmu-unknown", U, "SMMU 1 (0x2b500000)")],
    ),
    "passthrough": (
        with_kernel(HEALTHY, cmdline="root=/dev/sda1 iommu.passthrough=1"),
        [("iommu-passthrough", N, "host")],
    ),
    "passthrough by configuration": (
        with_kernel(with_option(HEALTHY, "IOMMU_DEFAULT_PASSTHROUGH", "y"), cmdline="quiet"),
        [("iommu-passthrough", N, "host")],
    ),
    "an alias": (
        with_function(HEALTHY, A, dma_rids=(0x100, 0x101)),
        [("many-streams", E, str(A))],
    ),
    "several streams in a description": (
        with_device(with_host(HEALTHY, functions=()), A, streams=2),
        [("many-streams", E, str(A))],
    ),
    "one stream for two": (
        with_function(HEALTHY, A2, dma_rids=(A.rid,)),
        [("shared-stream", E, f"{A} and {A2}")],
    ),
    "ATS that is not promised": (
        with_host(
            with_function(HEALTHY, A, ats=True),
            segments=(PciSegment(0, ats=False), PciSegment(1, ats=True)),
        ),
        [("ats-not-promised", N, str(A))],
    ),
    "no ITS": (with_device(HEALTHY, A, its_group=()), [("no-its", E, str(A))]),
    "an ITS without an address": (
        with_host(HEALTHY, itses=ITSES[:1]),
        [("its-unknown", U, "ITS 1")],
    ),
    "a pre-ITS": (
        with_its(pre_its=Pa(0x5800_0000)),
        [
            ("unsafe-interrupts-needed", E, str(A)),
            ("unsafe-interrupts-needed", E, str(A2)),
            ("pre-its", W, "ITS 0"),
        ],
    ),
    "a GICv2m": (
        with_its(gicv2m=True),
        [
            ("unsafe-interrupts-needed", E, str(A)),
            ("unsafe-interrupts-needed", E, str(A2)),
        ],
    ),
    "a pre-ITS that is allowed": (
        with_parameter(with_its(pre_its=Pa(0x5800_0000)), "iommufd.allow_unsafe_interrupts", "Y"),
        [("pre-its", W, "ITS 0"), ("unsafe-interrupts-on", W, "host")],
    ),
    "a GICv5": (with_its(translate_frame=Pa(0x3005_0000)), [("gicv5", N, "ITS 0")]),
    "a group of ITSes": (
        with_device(HEALTHY, A, its_group=(0, 1)),
        [("several-its-in-group", N, "ITSes 0 and 1")],
    ),
    "unsafe interrupts of containers": (
        with_parameter(HEALTHY, "vfio_iommu_type1.allow_unsafe_interrupts", "Y"),
        [("unsafe-interrupts-on", W, "host")],
    ),
    "no-IOMMU mode": (
        with_parameter(HEALTHY, "vfio.enable_unsafe_noiommu_mode", "Y"),
        [("noiommu-mode", W, "host")],
    ),
    "HW MSI": (
        with_function(HEALTHY, A, reserved=(SW_MSI_WINDOW, HARDWARE)),
        [("hw-msi-region", E, str(A))],
    ),
    "a direct region": (
        with_function(HEALTHY, A, reserved=(SW_MSI_WINDOW, DIRECT)),
        [("direct-region", E, str(A))],
    ),
    "an RMR": (
        with_host(with_function(HEALTHY, A, reserved=None), reserved_memory=(RMR,)),
        [("direct-region", E, str(A))],
    ),
    "a moved window": (
        with_device(with_host(HEALTHY, functions=()), A, reserved=(MOVED,)),
        [("rmr-fixed", E, str(A))],
    ),
    "17 doorbells of 64 KiB": (
        many_doorbells(17, Granule.K64),
        [("msi-window-full", N, "host")],
    ),
    "65 doorbells": (many_doorbells(65, Granule.K4), [("msi-window-full", N, "host")]),
    "a group of two ITSes": (
        with_function(HEALTHY, B, iommu_group=10),
        [("group-mixed-its", W, "IOMMU group 10")],
    ),
    "a neighbour that the host uses": (
        with_neighbour(driver="nvme"),
        [("group-host-driver", E, str(A))],
    ),
    "in use by the host": (
        with_function(HEALTHY, A, driver="mlx5_core"),
        [("host-driver", N, str(A))],
    ),
}

#: Changed cases that are not faults.
WELL = {
    "healthy": HEALTHY,
    "another tree": replace(HEALTHY, tree=TREE),
    "an unknown kernel": with_kernel(HEALTHY, release=None, options=None, parameters={}, smmus={}),
    "a new kernel": with_kernel(HEALTHY, release="7.2.12-vmm-msi", dev_iommu=True),
    "a copy without device nodes": with_kernel(replace(HEALTHY, tree=TREE), dev_iommu=False),
    "an invalid release": with_kernel(HEALTHY, release="unknown"),
    "an SMMU without a driver and devices": replace(HEALTHY, tree=HALF_DRIVEN, devices=(A, A2)),
    "CANWBS in place of S2FWB": with_host(
        with_hardware(HEALTHY, 0, s2fwb=False), segments=(PciSegment(0, canwbs=True),)
    ),
    "translated": with_kernel(HEALTHY, cmdline="iommu.passthrough=1 iommu.passthrough=0"),
    "ATS of an undescribed PCI host": with_host(with_function(HEALTHY, A, ats=True), segments=()),
    "a relaxable region": with_function(HEALTHY, A, reserved=(SW_MSI_WINDOW, RELAXABLE)),
    "an RMR that the kernel did not apply": with_host(HEALTHY, reserved_memory=(RMR,)),
    "an RMR that permits remapping": with_host(
        with_function(HEALTHY, A, reserved=None), reserved_memory=(replace(RMR, relaxable=True),)
    ),
    "an RMR of another device": with_host(
        with_function(HEALTHY, A, reserved=None),
        reserved_memory=(replace(RMR, first_stream=0x300, last_stream=0x3FF),),
    ),
    "16 doorbells of 64 KiB": many_doorbells(16, Granule.K64),
    "64 doorbells": many_doorbells(64, Granule.K4),
    "two devices of one ITS in a group": with_function(HEALTHY, A2, iommu_group=10),
    "a neighbour of VFIO": with_neighbour(driver="mlx5_vfio_pci"),
    "a port in the group": with_neighbour(driver="pcieport"),
    "a bridge in the group": with_neighbour(driver="some_bridge", class_code=0x060400),
    "a neighbour that is assigned, too": replace(
        with_device(guest(with_neighbour(driver="vfio-pci")), A_OTHER), devices=(A, A_OTHER)
    ),
    "one stream for two unselected devices": replace(
        with_function(HEALTHY, A2, dma_rids=(A.rid,)), devices=(B,)
    ),
    "no devices": replace(HEALTHY, devices=()),
}


@pytest.mark.parametrize("name", BROKEN)
def test_findings_of_a_broken_host(name):
    case, expected = BROKEN[name]
    assert [(f.id, f.severity, f.subject) for f in examine(case)] == expected


#: Problems of one device: warnings if no device is selected.
OF_ONE_DEVICE = {
    "direct-region",
    "group-host-driver",
    "hw-msi-region",
    "many-streams",
    "no-iommu-group",
    "no-its",
    "no-smmu",
    "shared-stream",
    "unsafe-interrupts-needed",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_problem_of_an_unselected_device_is_a_warning(name):
    case, expected = BROKEN[name]
    findings = {
        (f.id, f.severity, f.subject) for f in examine(replace(case, devices_selected=False))
    }
    assert findings == {
        (id_, W if id_ in OF_ONE_DEVICE else severity, subject)
        for id_, severity, subject in expected
        if id_ != "device-missing"
    } | {("device-unknown", U, subject) for id_, _, subject in expected if id_ == "device-missing"}


@pytest.mark.parametrize("name", WELL)
def test_a_healthy_variant_has_no_findings(name):
    assert examine(WELL[name]) == []


def test_each_finding_of_the_host_is_raised_in_every_severity_it_can_have():
    """The tests of the guest rules raise those of guests."""
    raised = {
        (id_, str(severity)) for _case, rows in BROKEN.values() for id_, severity, _ in rows
    } | {(id_, str(W)) for id_ in OF_ONE_DEVICE}
    assert raised == {(id_, severity) for id_, severities in IDS.items() for severity in severities}


@pytest.mark.parametrize("name", BROKEN)
def test_a_finding_has_evidence_and_two_sentences(name):
    for finding in examine(BROKEN[name][0]):
        assert finding.evidence
        for evidence in finding.evidence:
            assert evidence.where
            assert evidence.what
        for sentence in (finding.consequence, finding.remedy):
            assert not sentence[0].islower() or sentence.startswith("libvirt ")
            assert sentence.endswith(".")
            assert "  " not in sentence
            assert "None" not in sentence


@pytest.mark.parametrize("name", BROKEN)
def test_errors_and_warnings(name):
    case = BROKEN[name][0]
    findings = [finding for finding in rules.examine(case) if finding.severity in {E, W}]
    assert rules.errors_and_warnings(case) == findings


def test_a_minor_rule_reports_neither_errors_nor_warnings():
    for rule in rules.minor_rules():
        severities = {
            word for word in Severity if f"Severity.{word.name}" in inspect.getsource(rule)
        }
        assert severities
        assert severities <= {N, U}


def test_worst_findings_first():
    case = with_parameter(HEALTHY, "vfio.enable_unsafe_noiommu_mode", "Y")
    case = with_device(with_function(case, A, driver="mlx5_core"), A, its_group=())
    case = replace(case, unreadable=(Evidence("/x", "Permission denied"),))
    severities = [finding.severity for finding in examine(case)]
    assert severities == [E, W, N, U]


def test_a_finding_about_an_smmu_names_its_devices():
    (finding,) = examine(with_hardware(HEALTHY, 0, s2fwb=False))
    assert finding.consequence.startswith(f"{A} and {A2} cannot be behind a vSMMU")
    assert [str(evidence) for evidence in finding.evidence] == [
        "/var/log/kern.log: arm-smmu-v3 arm-smmu-v3.0.auto: ias 48-bit, oas 48-bit",
        "host: segment 0: no CANWBS",
    ]


def test_debians_kernel_is_named():
    case = with_option(with_kernel(HEALTHY, release="7.2.12+deb14-arm64"), "IOMMUFD", None)
    (finding,) = examine(case)
    assert "linux-image-7.2.12+deb14-arm64" in finding.remedy
    assert str(finding.evidence[0]) == "/boot/config-7.2.0: CONFIG_IOMMUFD is not set"


def test_before_s2fwb_detection_the_remedy_is_a_newer_kernel():
    case = with_hardware(with_kernel(HEALTHY, release="6.14.2"), 0, s2fwb=False)
    finding = next(one for one in examine(case) if one.id == "smmu-no-s2fwb")
    assert finding.remedy.startswith("Boot Linux 6.15 or newer")


def test_the_healthy_case_covers_every_device():
    assert {device.address for device in HOST.devices} == set(HEALTHY.devices)
