"""Texts of earlier releases, of other VMMs, and of parts of the kernel that are rarely seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm_msi.explain.explainer import explain
from vmm_msi.explain.explanation import Program
from vmm_msi.explain.log_context import LogContext


def only(line):
    report = explain(line, LogContext())
    assert report.unrecognised == 0
    (explained,) = report.lines
    return explained.explanation


def cases():
    """Read the lines with the id and the findings of each."""
    text = (Path(__file__).parent / "texts.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            id_, findings, logged = line.split(" | ", 2)
            yield pytest.param(logged, id_, findings, id=f"{id_}-{logged[:30]}")


@pytest.mark.parametrize(("line", "id_", "findings"), [*cases()])
def test_a_line_is_explained(line, id_, findings):
    explanation = only(line)
    assert explanation.id == id_
    if findings != "*":
        assert (",".join(explanation.findings) or "-") == findings


def test_a_group_of_go_programs_is_explained_by_lower_case_words():
    explanation = only(
        'level=error msg="QMP command failed: vfio 0000:1a:00.0: failed to open /dev/vfio/40: no '
        'such file or directory"'
    )
    assert explanation.findings == ("no-iommu-group", "host-driver")


def test_registers_of_an_smmuv2_fault_have_the_stream():
    explanation = only(
        "arm-smmu 64000000.mmu:     GFSR 0x00000002, GFSYNR0 0x00000002, GFSYNR1 0x00002000, "
        "GFSYNR2 0x00000000"
    )
    assert (explanation.id, explanation.stream) == ("smmuv2-global-fault", 0x2000)
    assert "no entry" in explanation.why


@pytest.mark.parametrize(
    "text", ["fsr=0x402, iova=0x8000040, fsynr=0x1", "iova=0x08000040, fsynr=0x1"]
)
def test_older_context_faults_have_the_address_and_no_stream(text):
    explanation = only(f"arm-smmu 15000000.iommu: Unhandled context fault: {text}, cb=0")
    assert (explanation.iova, explanation.stream) == (0x800_0040, None)


def test_cloud_hypervisor_does_not_start_without_a_bar():
    explanation = only(
        "Failed to map VFIO MMIO region: Failed to DMA map: Bad address (os error 14)"
    )
    assert explanation.program is Program.CLOUD_HYPERVISOR
    assert "vfio_p2p_dma=off" in explanation.remedies[0].what
    assert explanation.missing == ""


@pytest.mark.parametrize(
    "line",
    [
        "ata1: SATA link up 6.0 Gbps (SStatus 133 SControl 300)",
        "nvme nvme0: I/O 12 QID 3 timeout, aborting",
        "rtw89_8852be 0000:02:00.0: failed to assign chanctx: -16",
        "xhci_hcd 0000:01:00.0: probe with driver xhci_hcd failed with error -22",
        'avc:  denied  { read } for  pid=1 comm="sshd" name="shadow" dev="dm-0"',
        'apparmor="DENIED" operation="open" profile="snap.a" name="/proc/1/maps" pid=1',
        "pci 0000:05:00.0: BAR 0 [mem 0x10000000-0x1fffffff 64bit pref]: assigned",
        "WARNING: CPU: 1 PID: 2 at net/sched/sch_generic.c:525 dev_watchdog+0x1/0x2",
    ],
)
def test_lines_of_other_subsystems_are_not_explained(line):
    report = explain(line, LogContext())
    assert (report.lines, report.unrecognised) == ((), 1)


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("vfio-pci: probe of 0000:09:00.0 failed with error -22", "virtio-iommu"),
        (
            "vfio-pci 0000:09:00.0: vfio-noiommu device opened by user (vpp:1)",
            "trusts that program",
        ),
        ("nvme nvme0: I/O 12 QID 3 timeout, completion polled", "--in-guest"),
        ("pci 0000:09:00.0: BAR 0 [mem size 0x1000]: can't assign; no space", "--spare-memory"),
        ("ITS: No ITS available, not enabling LPIs", "<gic version='3'/>"),
    ],
)
def test_a_line_of_the_guest_has_remedies_for_the_guest(line, remedy):
    (explained,) = explain(line, LogContext(in_guest=True)).lines
    fixes = " ".join(fix.what for fix in explained.explanation.remedies)
    assert remedy in fixes
    assert "topology show" not in fixes
    assert "host's firmware" not in fixes
    (on_host,) = explain(line, LogContext()).lines
    (reading,) = on_host.explanation.otherwise
    assert remedy in " ".join(reading.remedies)
