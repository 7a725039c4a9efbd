import pytest
from qemuhook.helpers import A, B, Host


@pytest.fixture
def empty_host(tmp_path):
    """A host without PCI devices."""
    return Host(tmp_path)


@pytest.fixture
def host(empty_host):
    """A host with A and B, which drivers of the host use until libvirt takes them away."""
    empty_host.device(A, group=1, driver="nvme")
    empty_host.device(B, group=2, driver="vfio-pci")
    return empty_host
