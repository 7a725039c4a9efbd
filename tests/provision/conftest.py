import pytest
from provision.helpers import node, node_file


@pytest.fixture
def connection(tmp_path):
    """libvirt's test driver with a sample node of the test's own."""
    with node(node_file(tmp_path)) as opened:
        yield opened
