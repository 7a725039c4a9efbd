"""Free root ports, and plugging devices of a plan into a running guest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from domxml.conftest import LEVELS, A, B, C
from lxml import etree

from vmm_msi.domxml import added_elements, editor
from vmm_msi.domxml.index_gaps import close_gaps
from vmm_msi.domxml.libvirt_domain import ROOT_PORT
from vmm_msi.domxml.metadata import read_record, record_in
from vmm_msi.domxml.placement import Placement
from vmm_msi.domxml.support import IommufdForm
from vmm_msi.errors import DomainXmlError, RefusedError
from vmm_msi.types import GuestPlan, VsmmuPlan

LAYOUT = LEVELS["libvirt-12.8"].layout()


def behind(smmu, *devices):
    return GuestPlan((VsmmuPlan(smmu, devices),))


def ports(domain):
    return {c.index: c.address.bus for c in domain.controllers() if c.model == ROOT_PORT}


@pytest.fixture
def plain(read):
    return read("plain")


@pytest.fixture
def with_spare(plain, assignments):
    """A guest with A and two free ports behind its vSMMU."""
    return editor.apply(plain, behind(0, A), replace(LAYOUT, spare_ports=2), assignments)


def test_spare_ports_are_added_and_recorded(plain, with_spare):
    (vsmmu,) = read_record(with_spare).vsmmus
    assert len(vsmmu.spare_ports) == 2
    assert {ports(with_spare)[port] for port in vsmmu.spare_ports} == {vsmmu.pxb}
    assert len(ports(with_spare)) == len(ports(plain)) + 3
    assert added_elements.gone(Placement(with_spare), record_in(with_spare)) == []


def test_a_spare_port_is_used_before_a_new_one(with_spare, assignments):
    (vsmmu,) = read_record(with_spare).vsmmus
    both = editor.apply(with_spare, behind(0, A, B), LAYOUT, assignments)
    assert ports(both) == ports(with_spare)
    record = read_record(both)
    assert record.device(B).root_port == vsmmu.spare_ports[0]
    assert record.vsmmus[0].spare_ports == vsmmu.spare_ports[1:]
    again = editor.apply(both, behind(0, A, B, C), replace(LAYOUT, spare_ports=1), assignments)
    assert len(read_record(again).vsmmus[0].spare_ports) == 1
    assert len(ports(again)) == len(ports(both)) + 1


@pytest.mark.parametrize("first", [A, B], ids=str)
def test_removing_the_last_device_removes_the_spare_ports(plain, with_spare, assignments, first):
    both = editor.apply(with_spare, behind(0, A, B), LAYOUT, assignments)
    left = close_gaps(editor.remove(both, first))
    assert added_elements.gone(Placement(left), record_in(left)) == []
    assert str(editor.remove(left, B if first == A else A)) == str(plain)


def test_spare_ports_move_to_lower_indexes(plain, assignments):
    layout = replace(LAYOUT, spare_ports=1)
    two = editor.apply(plain, behind(0, A), layout, assignments)
    two = editor.apply(two, behind(1, B), layout, assignments)
    left = close_gaps(editor.remove(two, A))
    alone = editor.apply(plain, behind(1, B), layout, assignments)
    assert read_record(left).vsmmus[0].spare_ports == read_record(alone).vsmmus[0].spare_ports
    assert ports(left) == ports(alone)


def test_a_missing_spare_port_is_reported(with_spare):
    (vsmmu,) = read_record(with_spare).vsmmus
    (port,) = (c for c in with_spare.controllers() if c.index == vsmmu.spare_ports[0])
    port.element.getparent().remove(port.element)
    assert added_elements.gone(Placement(with_spare), record_in(with_spare)) == [
        f"the pcie-root-port with index {vsmmu.spare_ports[0]}"
    ]


def test_plug_and_unplug(with_spare, assignments):
    plugged = editor.plug(with_spare, behind(0, A, B), LAYOUT, assignments)
    (vsmmu,) = read_record(with_spare).vsmmus
    (hostdev,) = (hostdev for hostdev in plugged.hostdevs() if hostdev.host == B)
    assert hostdev.guest.bus == vsmmu.spare_ports[0]
    assert hostdev.iommufd is False  # <iommufd> asks for all of them
    assert ports(plugged) == ports(with_spare)
    assert str(editor.unplug(plugged, B)) == str(with_spare)
    assert read_record(editor.unplug(plugged, A)).vsmmus[0].spare_ports == (
        read_record(with_spare).device(A).root_port,
        vsmmu.spare_ports[1],
    )
    with pytest.raises(DomainXmlError, match="vmm-msi did not attach it; it attached 0000:01:00"):
        editor.unplug(with_spare, C)


def test_a_device_selects_iommufd_if_the_guest_does_not(plain, assignments):
    layout = replace(LAYOUT, iommufd=IommufdForm.HOSTDEV, spare_ports=1)
    running = editor.apply(plain, behind(0, A), layout, assignments)
    plugged = editor.plug(running, behind(0, A, B), LAYOUT, assignments)
    assert [hostdev.iommufd for hostdev in plugged.hostdevs() if hostdev.host == B] == [True]


def test_a_vsmmu_cannot_be_plugged(with_spare, assignments):
    before = str(with_spare)
    with pytest.raises(RefusedError) as caught:
        editor.plug(with_spare, behind(1, B), LAYOUT, assignments)
    assert "has no vSMMU for SMMU 1, and QEMU cannot plug one" in str(caught.value)
    assert "attach with --scope config, then restart the guest" in str(caught.value)
    assert str(with_spare) == before


def test_a_port_of_another_device_is_not_free(with_spare, assignments):
    (vsmmu,) = read_record(with_spare).vsmmus
    for port in vsmmu.spare_ports:
        taken = etree.SubElement(with_spare.devices, "rng", model="virtio")
        etree.SubElement(taken, "address", type="pci", bus=f"{port:#04x}", slot="0x00")
    with pytest.raises(RefusedError) as caught:
        editor.plug(with_spare, behind(0, A, B), LAYOUT, assignments)
    assert "its vSMMU on expander bus 1 has too few free root ports (0 of 1)" in str(caught.value)
    assert "attach with --scope config --spare-ports 1, then restart the guest" in str(caught.value)
