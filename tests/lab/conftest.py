"""Fixtures for the tests of the emulated host: its images, a running host, a run folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import unavailable

from vmm_msi.lab.build import images
from vmm_msi.lab.build.its_emulator import find_its_emulator
from vmm_msi.lab.build.kernel_flavour import BIND
from vmm_msi.lab.machine.emulated_host import LabHost
from vmm_msi.lab.machine.keeper import down
from vmm_msi.lab.machine.running import RUN_FOLDER_VARIABLE
from vmm_msi.lab.machine.shape import Shape


@pytest.fixture(scope="session")
def lab_images():
    """The cached images of the default suite."""
    cached = images.find_images()
    if cached is None:
        unavailable("no images of the emulated host: run vmm-msi lab build")
    return cached


@pytest.fixture(scope="session")
def its_emulator(lab_root, lab_images):
    """The cached QEMU of hosts with several ITSes."""
    cached = find_its_emulator()
    if cached is None:
        unavailable("no QEMU with several ITSes: run vmm-msi lab build --itses")
    return cached


@pytest.fixture(scope="session")
def bind_images(lab_images):
    """The cached images with the kernel that has guest MSI bindings."""
    cached = images.find_images(kernel=BIND)
    if cached is None:
        unavailable("no kernel with guest MSI bindings: run vmm-msi lab build")
    return cached


@pytest.fixture(scope="session")
def lab_host(lab_root, lab_images):
    """An emulated host for tests that leave it as it is; build/lab-logs keeps its logs."""
    logs = Path(__file__).resolve().parents[2] / "build" / "lab-logs"
    # Each process that runs tests has a host.
    logs /= os.environ.get("PYTEST_XDIST_WORKER", "")
    with LabHost(Shape(), keep_logs=logs) as host:
        yield host


@contextmanager
def own_run_folder():
    """Use a separate run folder, so that no lab is used that runs on this machine."""
    folder = Path(tempfile.mkdtemp(prefix="vmm-msi-", dir="/run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RUN_FOLDER_VARIABLE, str(folder))
        yield folder
        down()
    shutil.rmtree(folder)


@pytest.fixture
def run_folder(lab_root, lab_images):
    """A separate run folder for one test."""
    with own_run_folder() as folder:
        yield folder
