"""Fixtures that several folders of tests share: the lab's root and a libvirtd that runs from it."""

from __future__ import annotations

import os
import sys

import hypothesis
import pytest

from vmm_msi.errors import LabError
from vmm_msi.lab.daemon import LabDaemon
from vmm_msi.lab.progress import Progress
from vmm_msi.lab.root import ensure_root

# The machine that tests run on is shared: an example has no deadline, a test has pytest's timeout.
hypothesis.settings.register_profile("vmm-msi", deadline=None)
hypothesis.settings.load_profile("vmm-msi")


def unavailable(reason):
    """Skip with ``reason``; where every prerequisite is meant to be there (CI), fail instead."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI this must not be skipped: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def lab_root():
    """The cached root with a current libvirt and QEMU, built when there is none."""
    if os.geteuid() != 0:
        unavailable("the lab's root runs under chroot: not root")
    try:
        return ensure_root(progress=Progress(sys.stderr, "lab root"))
    except LabError as error:
        unavailable(f"no lab root: {error}")


@pytest.fixture(scope="session")
def lab_daemon(lab_root):
    """A libvirtd of the lab's root that runs for the whole session."""
    with LabDaemon(lab_root) as daemon:
        yield daemon
