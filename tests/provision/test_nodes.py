"""Host devices as libvirt describes them, and their effect on a guest."""

from __future__ import annotations

from pathlib import Path

import pytest
from provision.helpers import A, B, attach, detach, holders, node, node_file, texts

from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, DomainXml
from vmm_msi.errors import FindingsError, RefusedError
from vmm_msi.types import PciAddress


def test_a_bus_is_on_the_numa_cell_of_its_devices(connection):
    """The sample's devices are on node 0, and libvirt accepts the resulting <node>."""
    old = connection.domain_xml("guest0")
    cells = (
        "<numatune><memnode cellid='0' mode='strict' nodeset='1'/>"
        "<memnode cellid='1' mode='strict' nodeset='0'/></numatune>"
        "<cpu><numa><cell id='0' cpus='0' memory='2097152'/>"
        "<cell id='1' cpus='1' memory='2097152'/></numa></cpu>"
    )
    head, devices, tail = str(old).partition("  <devices>")
    connection.define(DomainXml.parse(head + cells + devices + tail, "the test"))
    before = texts(connection)
    assert connection.node_device(A).numa_node == 0
    attach(connection, A, B)
    (pxb,) = (c for c in connection.domain_xml("guest0").controllers() if c.model == EXPANDER_BUS)
    assert pxb.node == 1
    detach(connection)
    assert texts(connection) == before


def test_physical_and_virtual_function(tmp_path):
    """A node file with an SR-IOV device, as libvirt describes it."""
    text = Path(node_file(tmp_path)).read_text()
    half = "<capability type='{}'><address domain='0x0000' bus='0x01' slot='0x00' function='0x{}'/>"
    function = text[text.index("  <device>") : text.index("</device>") + len("</device>\n")]
    virtual = function.replace("pci_0000_01_00_0", "pci_0000_01_00_1").replace(
        "<function>0<", "<function>1<"
    )
    group = "      <iommuGroup number='10'>"
    physical = function.replace(group, half.format("virt_functions", 1) + "</capability>" + group)
    virtual = virtual.replace(group, half.format("phys_function", 0) + "</capability>" + group)
    (tmp_path / "vf.xml").write_text(text.replace(function, physical + virtual))
    vf = PciAddress(0, 1, 0, 1)
    with node(tmp_path / "vf.xml") as connection:
        assert connection.node_device(A).virtual_functions == (vf,)
        assert connection.node_device(vf).physical_function == A
        before = texts(connection)
        with pytest.raises(FindingsError, match="partial-group"):
            attach(connection, vf)
        attach(connection, vf, allow_faults=True)
        assert holders(connection, vf) == ["guest0"]
        with pytest.raises(RefusedError, match="Domain guest0 has its virtual function 0000:01:0"):
            attach(connection, A)
        detach(connection)
        assert texts(connection) == before
        attach(connection, A, allow_faults=True)
        with pytest.raises(RefusedError, match="Domain guest0 has its physical function 0000:01:"):
            attach(connection, vf)
