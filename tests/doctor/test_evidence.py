"""A device passes only on evidence: a source shows its SMMU and its ITS.

Hosts whose tables do not have a device are read from real device trees and ACPI tables.
"""

from __future__ import annotations

import pytest
from doctor.guest_cases import PLUGINS
from host.firmware import dt_builder
from host.firmware.acpi_builder import OTHERS, iort, its_group, madt, root_complex, smmu_v3
from host.firmware.dt_builder import node, pci

from vmm_msi.config import Config
from vmm_msi.doctor import rules_kernel, rules_software
from vmm_msi.doctor.case_reader import Selection, read_case
from vmm_msi.doctor.finding import Severity
from vmm_msi.doctor.rules import examine
from vmm_msi.host.files.in_memory import MemoryTree
from vmm_msi.host.firmware.acpi import parse_acpi
from vmm_msi.host.firmware.device_tree import parse_devicetree
from vmm_msi.host.join import host_of_functions
from vmm_msi.host.live import read_sources
from vmm_msi.host.sources import HostSources
from vmm_msi.types import PciAddress, PciFunction

HERE, BESIDE, NOWHERE = (PciAddress(segment, 1, 0, 0) for segment in (0, 1, 9))

ITS, SMMU = dt_builder.its(0), dt_builder.smmu(0)
FRAME = node('v2m: frame@{base:x} {{ compatible = "arm,gic-v2m-frame"; {extra} }};', 0, 0x1000)
TO_SMMU = "iommu-map = <0x0 &smmu0 0x0 0x10000>;"
TO_ITS = "msi-map = <0x0 &its0 0x0 0x10000>;"
TO_FRAME = "msi-map = <0x0 &v2m 0x0 0x10000>;"
SEGMENT = "linux,pci-domain = <{}>;"


def findings(host, *devices, tree=(), more=()):
    """Return the findings about the hardware; no source here has the kernel or libvirt."""
    selection = Selection(devices, None, None, None, PLUGINS, Config())
    case = read_case(HostSources(host.source, (host, *more), tree), selection)
    unknown = (rules_kernel.not_checked, rules_software.too_old)
    return [
        f"{finding.severity} {finding.id}: {finding.subject}" for finding in examine(case, unknown)
    ]


def tree(*parts):
    return dt_builder.parse(*parts)


BOARDS = {
    "nothing": ([pci(0)], ["smmu", "its"]),
    "a GICv2m": ([FRAME, pci(0, TO_FRAME)], ["smmu", "its"]),
    "an SMMU and a GICv2m": ([FRAME, SMMU, pci(0, TO_FRAME + TO_SMMU)], ["its"]),
    "an SMMU": ([SMMU, pci(0, TO_SMMU)], ["its"]),
    "an SMMU that PCI does not use": ([SMMU, ITS, pci(0, TO_ITS)], ["smmu"]),
    "an ITS": ([ITS, pci(0, TO_ITS)], ["smmu"]),
    "a disabled SMMU": (
        [dt_builder.smmu(0, extra='status = "disabled";'), ITS, pci(0, TO_SMMU + TO_ITS)],
        ["smmu"],
    ),
    "both": ([SMMU, ITS, pci(0, TO_SMMU + TO_ITS)], []),
}


@pytest.mark.parametrize(("parts", "lacks"), BOARDS.values(), ids=BOARDS)
def test_a_device_tree_without_an_smmu_or_an_its(parts, lacks):
    host = tree(*parts)
    assert findings(host, HERE) == [f"error no-{part}: {HERE}" for part in lacks]
    ids = [line.partition(":")[0] for line in findings(host)]
    assert ids == [f"warning no-{part}" for part in lacks]


def test_a_host_bridge_beside_one_with_an_smmu_and_an_its():
    """The tables have its segment: the device exists, and has neither."""
    host = tree(SMMU, ITS, pci(0, SEGMENT.format(0) + TO_SMMU + TO_ITS), pci(1, SEGMENT.format(1)))
    assert findings(host, HERE) == []
    assert findings(host, BESIDE) == [f"error no-smmu: {BESIDE}", f"error no-its: {BESIDE}"]
    assert findings(host, NOWHERE) == [f"error device-missing: {NOWHERE}"]


def test_a_root_complex_of_an_iort_without_mappings():
    tables = iort(
        its_group(0),
        smmu_v3((0, 0x10000, 0, 0, 0)),
        root_complex((0, 0x10000, 0, 1, 0)),
        root_complex(segment=1),
    )
    host = parse_acpi(tables, madt((0, 0x30000000)), "tables")
    assert findings(host, HERE) == []
    assert findings(host, BESIDE) == [f"error no-smmu: {BESIDE}", f"error no-its: {BESIDE}"]


@pytest.mark.parametrize(
    ("apic", "severity"), [(None, "unknown"), (madt(extra=OTHERS), "unknown")], ids=["no", "other"]
)
def test_an_iort_whose_its_has_no_address(apic, severity):
    tables = iort(its_group(0), smmu_v3((0, 0x10000, 0, 0, 0)), root_complex((0, 0x10000, 0, 1, 0)))
    assert findings(parse_acpi(tables, apic, "tables"), HERE) == [f"{severity} its-unknown: ITS 0"]


def test_a_device_that_the_kernel_has_behind_an_smmu_and_the_tables_do_not():
    """The tables are of another machine, or incomplete: unknown, but no error."""
    host = tree(SMMU, ITS, pci(0, TO_SMMU + TO_ITS))
    system = host_of_functions("sysfs", [PciFunction(BESIDE, iommu_group=3, members=(BESIDE,))])
    assert f"unknown device-unknown: {BESIDE}" in findings(host, BESIDE, more=(system,))
    system = host_of_functions("sysfs", [PciFunction(BESIDE)])
    assert {f"error no-smmu: {BESIDE}", f"error no-its: {BESIDE}"} <= set(
        findings(host, BESIDE, more=(system,))
    )


def test_a_system_without_tables():
    host = host_of_functions("sysfs", [PciFunction(HERE)], missing=("no tables",))
    assert "unknown no-tables: host" in findings(host, HERE)


def test_the_files_of_a_board_without_an_smmu():
    """Its device tree shows that it has no SMMU; the tree beside ACPI tables shows nothing."""
    blob = dt_builder.dtb(dt_builder.board(FRAME, pci(0, TO_FRAME)))
    files = MemoryTree("board", {"/sys/firmware/fdt": blob})
    host, *more = read_sources(files)
    assert findings(host, HERE, more=more) == [f"error no-smmu: {HERE}", f"error no-its: {HERE}"]
    stub = dt_builder.dtb(dt_builder.board("chosen { };"))
    (system,) = read_sources(MemoryTree("board", {"/sys/firmware/fdt": stub}))
    assert system.missing


@pytest.mark.parametrize("class_code", [0x060400, 0x060401, 0x060700, 0x060000])
def test_a_bridge_is_no_device(class_code):
    host = tree(SMMU, ITS, pci(0, TO_SMMU + TO_ITS))
    port = PciFunction(PciAddress(0, 0, 1, 0), class_code=class_code, iommu_group=1)
    behind = PciFunction(HERE, class_code=0x020000, iommu_group=1)
    system = host_of_functions("sysfs", [port, behind])
    assert [line for line in findings(host, port.address, more=(system,)) if "error" in line] == [
        f"error device-is-bridge: {port.address}"
    ]


def test_the_advice_fits_the_firmware():
    """A device tree has no tables to copy; its host bridges have maps."""
    bare = tree(pci(0))
    selection = Selection((HERE,))
    texts = [
        finding.remedy
        for finding in examine(read_case(HostSources("board.dtb", (bare,)), selection))
        if finding.severity is Severity.ERROR
    ]
    assert len(texts) == 2
    for text in texts:
        assert "device tree whose host bridges have" in text
        assert not {"ACPI", "APIC", "IORT", "firmware"} & set(text.replace(",", "").split())
    assert parse_devicetree(dt_builder.dtb(dt_builder.board(pci(0))), "x").is_described
