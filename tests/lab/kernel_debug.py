"""Run the patched kernel with the kernel's own checks: ``make lab-kernel-debug``.

One boot of the kernel ``debug`` runs the kernel's selftests of iommufd and random call sequences.
It takes 7 minutes. Neither ``make test`` nor CI runs it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from conftest import unavailable
from lab.kernel_selftests import PROGRAMS, build_programs, kernel_reports, parse_tap
from lab.test_conform import both_sides, text_of

from vmm_msi.lab.build.images import find_images
from vmm_msi.lab.build.kernel_flavour import DEBUG
from vmm_msi.lab.build.progress import Progress
from vmm_msi.lab.conformance import conform
from vmm_msi.lab.conformance.random_sequences import draw_sequences
from vmm_msi.lab.machine.emulated_host import LabHost
from vmm_msi.lab.machine.shape import Shape
from vmm_msi.lab.rpc.link import AgentLink

pytestmark = [pytest.mark.lab_root, pytest.mark.timeout(3600)]

#: Call sequences; ``VMM_MSI_DEBUG_SEQUENCES`` has another number.
SEQUENCES = int(os.environ.get("VMM_MSI_DEBUG_SEQUENCES", "100"))

#: Reserves the pages of 2 MiB that the selftests use: 128 MiB at a time, and a few more.
HUGE_PAGES = b"""#!/usr/bin/busybox sh
echo 96 >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
exec busybox cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
"""
#: lockdep switches itself off at its first report, and when its tables are full.
LOCKDEP = b"#!/usr/bin/busybox sh\nexec busybox grep debug_locks /proc/lockdep_stats\n"


@pytest.fixture(scope="module")
def host(lab_root):
    """An emulated host on the kernel ``debug``, with the selftests; build/lab-logs has its log."""
    if find_images(kernel=DEBUG) is None:
        unavailable("no kernel debug: run vmm-msi lab build --kernel debug")
    programs = build_programs(Progress(sys.stderr, "selftests"))
    programs |= {"huge-pages": HUGE_PAGES, "lockdep": LOCKDEP}
    logs = Path(__file__).resolve().parents[2] / "build" / "lab-logs"
    progress = Progress(sys.stderr, "lab")
    # KASAN takes an eighth of the memory.
    shape = Shape(kernel=DEBUG, memory=3072)
    with LabHost(shape, programs=programs, progress=progress, keep_logs=logs) as lab:
        yield lab


def log_of(lab):
    return lab.serial_log.read_text("utf-8", "replace")


@pytest.fixture(autouse=True)
def no_report(host):
    """Check that the kernel reports no fault of its own while a test runs, or at the boot."""
    yield
    known = getattr(host, "known_reports", 0)
    reports = kernel_reports(log_of(host))
    host.known_reports = len(reports)
    assert reports[known:] == []


def run(link, program):
    """Return the output of a program; the selftests take minutes."""
    return link.call("program", name=program, timeout_s=1800)["output"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_selftests_of_the_kernel_pass(program, host, counts):
    with AgentLink(host.agent_socket) as link:
        assert int(run(link, "huge-pages")) == 96
        output = run(link, program)
    results = parse_tap(output)
    for outcome in ("pass", "skip"):
        counts[f"tests of {program}: {outcome}"] = sum(r.outcome == outcome for r in results)
    assert [result.name for result in results if result.outcome == "fail"] == [], output
    if program == "iommufd":
        added = {result.name for result in results if ".mock_viommu.vdevice_msi_" in result.name}
        assert len(added) == 3


def test_the_kernel_is_as_the_simulator_says(host, counts):
    progress = Progress(sys.stderr, "conform")
    with both_sides(host) as (simulator, side):
        assert simulator.bindings
        drawn = draw_sequences(simulator, SEQUENCES, 1)
        report = conform.compare(
            simulator, side, drawn, lambda done, total: progress.count(done, total, "sequences")
        )
    counts["call sequences on the kernel debug"] = report.sequences
    counts["steps of them"] = report.steps
    assert not report.mismatches, text_of(report)


def test_lockdep_is_still_at_work(host):
    with AgentLink(host.agent_socket) as link:
        assert run(link, "lockdep").split() == ["debug_locks:", "1"]
