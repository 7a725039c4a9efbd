import pytest
from provision.helpers import GUEST, node, node_file

from vmm_msi.domxml.template import nested_guest
from vmm_msi.libvirt_driver import connect


@pytest.fixture
def connection(tmp_path):
    """libvirt's test driver with a sample node of the test's own."""
    with node(node_file(tmp_path)) as opened:
        yield opened


@pytest.fixture
def qemu(lab_daemon):
    """The daemon's QEMU driver with a guest that is emulated: there is no KVM for aarch64."""
    with connect(lab_daemon.uri) as connection:
        connection.define(nested_guest(GUEST, memory=256 << 20, kind="qemu"))
        yield connection
        if connection.is_active(GUEST):
            connection.destroy(GUEST)
        connection.undefine(GUEST)
