"""Output of the doctor."""

from __future__ import annotations

import json
from dataclasses import replace

from doctor.cases import HEALTHY, A, B, with_function, with_hardware, with_parameter

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rules import examine
from vmm_msi.report import doctor as report


def text(findings, about="host, 3 devices"):
    return "\n".join(report.to_lines(about, findings, width=100)) + "\n"


def test_findings_are_blocks_worst_first_with_a_summary():
    case = with_hardware(HEALTHY, 1, s2fwb=False)
    case = with_parameter(case, "vfio.enable_unsafe_noiommu_mode", "Y")
    assert (
        text(examine(with_function(case, B, driver="nvme", class_code=0x010802)))
        == """\
ERROR smmu-no-s2fwb: SMMU 1 (0x2b500000)
  found   /var/log/kern.log: arm-smmu-v3 arm-smmu-v3.0.auto: ias 48-bit, oas 48-bit
  found   host: segment 1: no CANWBS
  effect  0001:01:00.0 cannot be behind a vSMMU: the kernel rejects IOMMU_VIOMMU_ALLOC with
          EOPNOTSUPP, because neither S2FWB nor CANWBS stops a guest from bypassing the caches.
  remedy  Use devices behind an SMMU that can nest, or run their guest without a vSMMU; no kernel
          setting changes this.

WARNING noiommu-mode: host
  found   /sys/module/vfio/parameters/enable_unsafe_noiommu_mode: Y
  effect  Any process that can open /dev/vfio/noiommu-* can make a device write to all memory of the
          host; guests cannot use the mode, because nothing translates their addresses.
  remedy  Set vfio.enable_unsafe_noiommu_mode to N, and enable the SMMU instead.

NOTE host-driver: 0001:01:00.0
  found   /sys/bus/pci/devices/0001:01:00.0/driver: nvme
  effect  With managed='yes', libvirt takes 0001:01:00.0 from the host when the guest starts; it is
          a storage controller: the host loses its disks.
  remedy  Make sure that the host does not need 0001:01:00.0, such as for its boot disk or your
          network connection; with managed='no', bind it to vfio-pci first.

host, 3 devices: 1 error, 1 warning, 1 note; use --explain ID for details
"""
    )


def test_the_same_finding_about_many_devices_is_one_block():
    findings = [
        Finding(
            "no-its",
            Severity.ERROR,
            f"0000:{bus:02x}:00.0",
            (Evidence("IORT", f"no ITS for bus {bus}"),),
            f"0000:{bus:02x}:00.0 has none.",
            f"Use another device than 0000:{bus:02x}:00.0.",
        )
        for bus in range(1, 8)
    ]
    assert (
        text(findings)
        == """\
ERROR no-its: 0000:01:00.0, 0000:02:00.0, 0000:03:00.0, 0000:04:00.0 and 3 more
  found   IORT: no ITS for bus 1
          and the same for 6 others
  effect  0000:01:00.0 has none.
  remedy  Use another device than 0000:01:00.0.

host, 3 devices: 7 errors; use --explain ID for details
"""
    )
    assert "0000:02:00.0\n" in text(findings[:2]).partition("found")[0]
    assert "and the same for 1 other\n" in text(findings[:2])


def test_long_evidence_is_cut_and_control_characters_are_escaped():
    lines = tuple(Evidence("a\x1b[31m", f"line {number}\n") for number in range(9))
    finding = Finding("not-root", Severity.UNKNOWN, "host", lines, "A.", "B.")
    shown = text([finding])
    assert "\x1b" not in shown
    assert "a\\x1b[31m: line 0\\n" in shown
    assert "          and 3 more\n" in shown
    assert "1 check could not run" in shown


def test_no_problems():
    assert text([]) == "host, 3 devices: no problems found\n"


def test_json_has_every_field():
    case = replace(with_function(HEALTHY, A, driver="mlx5_core"), devices=(A,))
    document = report.to_json(case, None, examine(case))
    assert json.loads(json.dumps(document)) == {
        "schema": 1,
        "host": case.host.source,
        "host_files": False,
        "domain": None,
        "devices": ["0000:01:00.0"],
        "counts": {"error": 0, "warning": 0, "note": 1, "unknown": 0},
        "ignored": {"error": 0, "warning": 0, "note": 0, "unknown": 0},
        "findings": [
            {
                "id": "host-driver",
                "severity": "note",
                "subject": "0000:01:00.0",
                "evidence": [
                    {"where": "/sys/bus/pci/devices/0000:01:00.0/driver", "what": "mlx5_core"}
                ],
                "consequence": "With managed='yes', libvirt takes 0000:01:00.0 from the host when "
                "the guest starts; it is a network controller: the host loses its links.",
                "remedy": "Make sure that the host does not need 0000:01:00.0, such as for its "
                "boot disk or your network connection; with managed='no', bind it to vfio-pci "
                "first.",
            }
        ],
    }
