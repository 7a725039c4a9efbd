import pytest
from qemuhook.helpers import A, B, Host


@pytest.fixture
def empty_host(tmp_path):
    """Return a host without PCI devices."""
    return Host(tmp_path)


@pytest.fixture
def host(empty_host):
    """Return a host with A and B, as before libvirt binds them to vfio-pci."""
    empty_host.device(A, group=1, driver="nvme")
    empty_host.device(B, group=2, driver="vfio-pci")
    return empty_host
