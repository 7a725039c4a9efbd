"""PCI devices of this machine: their drivers, ids and MSI window, from a folder in its place."""

from __future__ import annotations

import errno

import pytest
from host.host_files import HostFiles
from host.hosts import server

from vmm_msi.errors import BackendError
from vmm_msi.host.files.folder import FolderTree
from vmm_msi.iommu.linux import local_pci
from vmm_msi.iommu.linux.vfio import is_free
from vmm_msi.types import SW_MSI_WINDOW, PciAddress

DEVICE = PciAddress.parse("0000:01:00.0")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that puts files in the place of this machine's."""

    def install(files):
        root = files.write(tmp_path)
        monkeypatch.setattr(local_pci, "DEVICES", root / "sys/bus/pci/devices")
        monkeypatch.setattr(local_pci, "this_machine", lambda: FolderTree(root))
        return root

    return install


@pytest.mark.parametrize(
    ("driver", "vfio_dev", "free"),
    [
        (None, False, True),
        ("vfio-pci", False, False),
        ("nvgrace_gpu_vfio_pci", False, False),
        ("migratable_net", True, False),
    ],
)
def test_a_device_is_free_without_a_driver(machine, driver, vfio_dev, free):
    files = HostFiles().function(str(DEVICE), driver=driver)
    if vfio_dev:
        files.folders.append(f"{files.paths[str(DEVICE)]}/vfio-dev/vfio0")
    machine(files)
    assert is_free(DEVICE) is free


def test_a_driver_of_the_host_keeps_its_device(machine):
    machine(HostFiles().function(str(DEVICE), driver="nvme"))
    with pytest.raises(BackendError, match="the driver nvme has it; unbind it first") as caught:
        is_free(DEVICE)
    assert caught.value.errno == errno.EBUSY


def test_a_missing_device(machine):
    machine(HostFiles())
    for read in (is_free, local_pci.folder_of, local_pci.ids_of):
        with pytest.raises(BackendError, match="the host has no such PCI device") as caught:
            read(DEVICE)
        assert caught.value.errno == errno.ENODEV


def test_ids_and_window(machine):
    machine(server())
    assert local_pci.ids_of(DEVICE) == (0x8086, 0x1572)
    assert local_pci.function_of(DEVICE).class_code == 0x020000
    assert local_pci.sw_msi_window(DEVICE) == SW_MSI_WINDOW


def test_a_device_without_a_group_has_no_window(machine):
    machine(HostFiles().function(str(DEVICE)))
    assert local_pci.sw_msi_window(DEVICE) is None


def test_unreadable_ids(machine):
    root = machine(HostFiles().function(str(DEVICE)))
    (root / "sys/bus/pci/devices" / str(DEVICE) / "vendor").unlink()
    with pytest.raises(BackendError, match="its vendor id and device id cannot be read") as caught:
        local_pci.ids_of(DEVICE)
    assert caught.value.errno == errno.EIO
