"""Whether a device is bound to VFIO, and what shows it."""

from __future__ import annotations

import pytest
from host.host_files import HostFiles

from vmm_msi.host.pci.functions import read_functions
from vmm_msi.host.pci.vfio_drivers import host_driver_of, vfio_evidence, vfio_modules
from vmm_msi.types import PciAddress, PciFunction
from vmm_msi.types.pci_function import VfioEvidence

ADDRESS = "0000:01:00.0"
RELEASE = "6.18.3-arm64"
ALIASES = b"""\
# Aliases extracted from modules themselves.
alias pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_core
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
alias vfio_pci:v00001AF4d00001041sv*sd*bc*sc*i* migratable_net
"""


def host(driver, *, vfio_dev=False, aliases=None):
    files = HostFiles().function(ADDRESS, driver=driver, group=1)
    if vfio_dev:
        files.folders.append(f"{files.paths[ADDRESS]}/vfio-dev/vfio0")
    if aliases is not None:
        files.files["/proc/sys/kernel/osrelease"] = f"{RELEASE}\n".encode()
        files.files[f"/lib/modules/{RELEASE}/modules.alias"] = aliases
    return files


@pytest.mark.parametrize(
    ("driver", "shown", "evidence"),
    [
        ("vfio-pci", {"vfio_dev": True}, VfioEvidence.VFIO_DEV),
        ("migratable_net", {"vfio_dev": True, "aliases": ALIASES}, VfioEvidence.VFIO_DEV),
        ("migratable-net", {"aliases": ALIASES}, VfioEvidence.MODULES_ALIAS),
        ("vfio-pci", {"aliases": ALIASES}, VfioEvidence.MODULES_ALIAS),
        ("mlx5_core", {"aliases": ALIASES}, None),
        ("nvgrace_gpu_vfio_pci", {"aliases": ALIASES}, VfioEvidence.DRIVER_NAME),
        ("vfio-pci", {}, VfioEvidence.DRIVER_NAME),
        ("migratable_net", {}, None),
        ("nvme", {}, None),
        (None, {"aliases": ALIASES}, None),
    ],
)
def test_evidence_in_sysfs(driver, shown, evidence):
    (function,) = read_functions(host(driver, **shown).tree())
    assert vfio_evidence(function) is evidence
    assert host_driver_of(function) == (None if evidence else driver)


@pytest.mark.parametrize(
    ("driver", "evidence"),
    [
        ("vfio-pci", VfioEvidence.DRIVER_NAME),
        ("mlx5-vfio-pci", VfioEvidence.DRIVER_NAME),
        ("nvgrace_gpu_vfio_pci", VfioEvidence.DRIVER_NAME),
        ("nvme", None),
        (None, None),
    ],
)
def test_only_the_name_of_the_driver(driver, evidence):
    function = PciFunction(PciAddress.parse(ADDRESS), driver=driver)
    assert vfio_evidence(function) is evidence


@pytest.mark.parametrize("driver", ["pci-stub", "pcieport"])
def test_drivers_that_leave_dma_alone(driver):
    function = PciFunction(PciAddress.parse(ADDRESS), driver=driver)
    assert vfio_evidence(function) is None
    assert host_driver_of(function) is None


def test_modules_alias():
    assert vfio_modules(host("nvme", aliases=ALIASES).tree()) == {
        "mlx5_vfio_pci",
        "vfio_pci",
        "migratable_net",
    }
    assert vfio_modules(host("nvme").tree()) == frozenset()


def test_modules_alias_that_cannot_be_read():
    files = host("vfio-pci", aliases=ALIASES)
    files.unreadable[f"/lib/modules/{RELEASE}/modules.alias"] = "Permission denied"
    assert vfio_modules(files.tree()) == frozenset()
    (function,) = read_functions(files.tree())
    assert vfio_evidence(function) is VfioEvidence.DRIVER_NAME


def test_a_release_that_is_not_a_name():
    files = host("nvme", aliases=ALIASES)
    files.files["/proc/sys/kernel/osrelease"] = b"../../etc\n"
    assert vfio_modules(files.tree()) == frozenset()
