"""The results of the kernel's selftests, and the faults that a kernel's log reports."""

from __future__ import annotations

import pytest
from lab.kernel_selftests import kernel_reports, parse_tap

TAP = """\
TAP version 13
1..5
# Starting 5 tests from 4 test cases.
#  RUN           iommufd.simple_close ...
#            OK  iommufd.simple_close
ok 1 iommufd.simple_close
#  RUN           iommufd_mock_domain.one_domain_hugepage.basic ...
# iommufd.c:1502:basic:Expected MAP_FAILED (18446744073709551615) != buf (18446744073709551615)
#          FAIL  iommufd_mock_domain.one_domain_hugepage.basic
not ok 2 iommufd_mock_domain.one_domain_hugepage.basic
#      SKIP      Skipping test for variant no_viommu
ok 3 iommufd_viommu.no_viommu.hw_queue # SKIP Skipping test for variant no_viommu
ok 4 a.b.c # XFAIL known
ok 5 - basic_fail_nth.map_domain
# FAILED: 4 / 5 tests passed.
# Totals: pass:3 fail:1 xfail:1 xpass:0 skip:1 error:0
"""


def test_each_result_of_tap():
    assert parse_tap(TAP) == [
        ("iommufd.simple_close", "pass"),
        ("iommufd_mock_domain.one_domain_hugepage.basic", "fail"),
        ("iommufd_viommu.no_viommu.hw_queue", "skip"),
        ("a.b.c", "pass"),
        ("basic_fail_nth.map_domain", "pass"),
    ]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (TAP[: TAP.index("ok 4")], "3 results, its plan 5"),
        (TAP.replace("1..5\n", ""), "5 results, its plan None"),
        ("", "0 results, its plan None"),
        ("sh: iommufd: not found", "0 results"),
    ],
    ids=["killed", "no plan", "nothing", "no TAP"],
)
def test_output_of_a_program_that_did_not_finish(output, message):
    with pytest.raises(ValueError, match=message):
        parse_tap(output)


REPORTS = [
    "BUG: KASAN: slab-use-after-free in iommufd_sw_msi+0x116c/0x18cc",
    "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:591",
    "BUG: MAX_LOCKDEP_CHAINS too low!",
    "WARNING: possible circular locking dependency detected",
    "WARNING: drivers/iommu/iommufd/main.c:150 at iommufd_object_remove+0x1/0x2, CPU#0: python3/60",
    "UBSAN: shift-out-of-bounds in include/linux/msi.h:73:2",
    "INFO: task python3:60 blocked for more than 120 seconds.",
    "INFO: rcu_preempt detected stalls on CPUs/tasks:",
    "INFO: trying to register non-static key.",
    "refcount_t: underflow; use-after-free.",
    "list_del corruption. prev->next should be ffff000003165018",
    "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008",
    "Internal error: Oops: 0000000096000004 [#1]  SMP",
    "Kernel panic - not syncing: Fatal exception",
]


@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize("before", ["", "[   12.345678] ", "~ # \x1b[6n"])
def test_a_report_is_seen(report, before):
    log = f"vfio-pci 0000:13:00.0: resetting\r\n{before}{report}\r\nCall trace:\n"
    assert kernel_reports(log) == [report]


@pytest.mark.parametrize(
    "line",
    [
        "vfio-pci 0000:13:00.0: reset done",
        "FAULT_INJECTION: forcing a failure.",
        "Call trace:",
        "page: refcount:0 mapcount:0 mapping:0000000000000000 index:0x0 pfn:0x43165",
        "INFO: lockdep is turned off.",
        "arm-smmu-v3 arm-smmu-v3.1.auto: event: F_TRANSLATION client: 0000:21:00.0 sid: 0x2100",
        "WARNING: drivers/iommu/io-pgtable-arm.c:402 at __arm_lpae_map+0x604/0x9a4, CPU#0: a/60",
    ],
)
def test_other_messages_are_no_report(line):
    assert kernel_reports(line) == []
