"""Build the kernel's selftests of iommufd for the emulated host, and read what they print.

The programs are those of ``tools/testing/selftests/iommu`` with the tests that the patches of
``vmm_msi/lab/kernel`` add. They print TAP, as ``tools/testing/selftests/kselftest_harness.h`` does.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import deb_tree, host_tools
from vmm_msi.lab.build.kernel_flavour import DEBUG, flavour
from vmm_msi.lab.build.kernel_tree import kernel_tree

PROGRAMS = ("iommufd", "iommufd_fail_nth")
#: What they are linked with: a static program runs on the emulated host's small user land.
PACKAGES = ("libc6-dev", "libcap-dev")

#: Those of the programs' Makefile and of lib.mk; a warning is an error.
_OPTIONS = ("-D_GNU_SOURCE=", "-Wall", "-O2", "-Wno-unused-function", "-Werror")
#: A program with a time limit of its own for each test: the usual 30 s are for a real machine.
_SOURCE = """\
#include "kselftest_harness.h"
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 900
#include "iommu/{name}.c"
"""
_CROSS = "aarch64-linux-gnu-"
_RESULT = re.compile(
    r"(?P<no>not )?ok \d+ (?:- )?(?P<name>\S+)(?: # (?P<directive>SKIP|XFAIL)\b.*)?"
)
_PLAN = re.compile(r"1\.\.(\d+)")

#: How a message begins that reports a fault of the kernel: of lockdep, KASAN, UBSAN, DEBUG_LIST and
#: refcount_t, a WARN_ON, an oops, a stall. On the console a prompt may come before it.
_REPORT = re.compile(
    r"(?:BUG|WARNING|UBSAN|refcount_t|Internal error|Kernel panic[^:]*): .*"
    r"|INFO: (?:rcu_\w+|task|trying|possible) .*|list_(?:add|del) corruption.*|Unable to handle .*"
)
#: Linux warns when user space maps over a slot of the SW MSI window, and returns EEXIST
#: (arm_lpae_init_pte); the stock kernel does it, too.
_EXPECTED = re.compile(r"WARNING: drivers/iommu/io-pgtable-arm\.c:\d+ at __arm_lpae_map\b.*")


class TestResult(NamedTuple):
    """The result of one test.

    :ivar name: fixture, variant and test.
    :ivar outcome: ``pass``, ``fail`` or ``skip``; an expected failure passes.
    """

    # pytest collects nothing from it.
    __test__ = False

    name: str
    outcome: str


def parse_tap(text):
    """Return the result of each test in a program's output.

    :raise ValueError: when the output has fewer results than its plan, as when it was killed.
    """
    results = []
    planned = None
    for line in text.splitlines():
        plan, result = _PLAN.fullmatch(line), _RESULT.fullmatch(line)
        if plan is not None:
            planned = int(plan[1])
        elif result is not None:
            outcome = (
                "fail" if result["no"] else "skip" if result["directive"] == "SKIP" else "pass"
            )
            results.append(TestResult(result["name"], outcome))
    if planned != len(results):
        raise ValueError(f"the output has {len(results)} results, its plan {planned}")
    return results


def kernel_reports(log):
    """Return the messages in a kernel's log that report a fault of the kernel."""
    messages = [match[0] for match in map(_REPORT.search, log.splitlines()) if match is not None]
    return [message for message in messages if not _EXPECTED.match(message)]


def build_programs(progress, cache=None):
    """Return the static programs by name, built from the patched source of the kernel ``debug``.

    :raise LabError: when the source, a package or a tool is missing.
    """
    host_tools.require_tools([f"{_CROSS}gcc", *deb_tree.TOOLS])
    with tempfile.TemporaryDirectory() as folder:
        log, libraries = Path(folder, "log"), Path(folder, "libraries")
        deb_tree.fill(Path(folder, "apt"), libraries, DEFAULT_SUITE, PACKAGES, log, progress)

        def run(command, cwd=None, _doing=""):
            subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)

        with kernel_tree(DEFAULT_SUITE, cache, log, progress, run) as tree:
            tree.prepare(flavour(DEBUG).patches)
            headers = Path(folder, "headers")
            selftests = tree.source / "tools/testing/selftests"
            make = ["make", "-s", f"--directory={tree.source}", f"O={headers}", "ARCH=arm64"]
            headers.mkdir()
            run([*make, f"CROSS_COMPILE={_CROSS}", f"-j{os.cpu_count()}", "headers"])
            programs = {}
            for name in PROGRAMS:
                progress.stage(f"compiling the selftest {name}")
                program, source = Path(folder, name), Path(folder, f"{name}.c")
                source.write_text(_SOURCE.format(name=name))
                options = ("-static", *_OPTIONS, f"--sysroot={libraries}")
                include = ("-isystem", headers / "usr/include", "-I", selftests)
                run([f"{_CROSS}gcc", *options, *include, "-o", program, source, "-lcap"])
                programs[name] = program.read_bytes()
    progress.clear()
    return programs
