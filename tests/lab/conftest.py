"""What the tests of the emulated host share: the images it is made from and a run folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from conftest import unavailable

from vmm_msi.lab.build import images
from vmm_msi.lab.machine.emulated_host import LabHost
from vmm_msi.lab.machine.keeper import down
from vmm_msi.lab.machine.running import RUN_FOLDER_VARIABLE
from vmm_msi.lab.machine.shape import Shape


@pytest.fixture(scope="session")
def lab_images():
    """The images of the default suite, where they have been built."""
    found = images.find_images()
    if found is None:
        unavailable("no images of the emulated host: vmm-msi lab build makes them")
    return found


@pytest.fixture(scope="session")
def lab_host(lab_root, lab_images):
    """An emulated host for all tests that only talk to it; its logs stay in build/lab-logs."""
    logs = Path(__file__).resolve().parents[2] / "build" / "lab-logs"
    with LabHost(Shape(), keep_logs=logs) as host:
        yield host


@pytest.fixture
def run_folder(lab_root, lab_images, monkeypatch):
    """A run folder of the test's own, so that a lab that runs on this machine is left alone."""
    folder = Path(tempfile.mkdtemp(prefix="vmm-msi-", dir="/run"))
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(folder))
    yield folder
    down()
    shutil.rmtree(folder)
