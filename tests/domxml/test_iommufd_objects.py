"""An iommufd object for each vSMMU, in <qemu:commandline> and <qemu:override>."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from domxml.conftest import LEVELS, A, B, C

from vmm_msi.domxml import editor, iommufd_objects
from vmm_msi.domxml.added_elements import dropped, gone
from vmm_msi.domxml.editor import Assignment
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.metadata import record_in
from vmm_msi.domxml.placement import Placement
from vmm_msi.domxml.template import nested_guest
from vmm_msi.errors import DomainXmlError, RefusedError
from vmm_msi.types import GuestPlan, PciAddress, VsmmuPlan

LAYOUT = LEVELS["libvirt-12.8"].layout()
FIRST, SECOND = "vmm-msi-iommufd1", "vmm-msi-iommufd2"
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


def _plan(*devices: tuple[PciAddress, int], own: bool = True) -> GuestPlan:
    by_its: dict[int, list[PciAddress]] = {}
    for device, its in devices:
        by_its.setdefault(its, []).append(device)
    vsmmus = (VsmmuPlan(0, tuple(d), its, own_iommufd=own) for its, d in by_its.items())
    return GuestPlan(tuple(vsmmus))


def _attach(xml, *devices, own=True, layout=LAYOUT):
    assignments = {device: Assignment("multi-its", "qemu", its) for device, its in devices}
    return editor.apply(xml, _plan(*devices, own=own), layout, assignments)


def _objects(xml):
    return [iommufd_objects.used_by(xml, device.host) for device in xml.hostdevs()]


@pytest.fixture
def guest():
    return nested_guest("guest0", memory=1 << 30)


def _with_qemu(guest, *elements):
    text = str(guest).replace("</domain>", "".join(elements) + "</domain>")
    return DomainXml.parse(text.replace("<domain ", f"<domain xmlns:qemu='{QEMU}' ", 1), "test")


def test_the_first_vsmmu_keeps_libvirts_object(guest):
    edited = _attach(guest, (A, 0), (B, 1), (C, 2))
    assert _objects(edited) == [None, FIRST, SECOND]
    assert set(iommufd_objects.elements_by_id(edited)) == {FIRST, SECOND}
    assert [vsmmu.iommufd for vsmmu in record_in(edited).vsmmus] == [None, FIRST, SECOND]
    assert edited.iommufd is True


def test_one_vsmmu_needs_neither_command_line_nor_override(guest):
    text = str(_attach(guest, (A, 0), (B, 0)))
    assert "qemu:" not in text
    assert "<alias" not in text


def test_devices_of_one_vsmmu_share_its_object(guest):
    edited = _attach(_attach(guest, (A, 0), (B, 1)), (C, 1))
    assert _objects(edited) == [None, FIRST, FIRST]


@pytest.mark.parametrize("order", [*itertools.permutations((A, B, C))])
def test_removing_in_any_order_restores_the_text(guest, order):
    edited = _attach(guest, (A, 0), (B, 1), (C, 2))
    for device in order:
        edited = editor.remove(edited, device)
    assert str(edited) == str(guest)


def test_a_free_id_is_used_again(guest):
    edited = _attach(guest, (A, 0), (B, 1), (C, 2))
    edited = _attach(editor.remove(edited, B), (B, 1))
    assert {iommufd_objects.used_by(edited, device) for device in (B, C)} == {FIRST, SECOND}


def test_what_the_user_passes_to_qemu_stays(guest):
    mine = _with_qemu(
        guest,
        "<qemu:commandline><qemu:arg value='-object'/>"
        f'<qemu:arg value=\'{{"qom-type":"iommufd","id":"{FIRST}"}}\'/></qemu:commandline>',
        "<qemu:override><qemu:device alias='ua-x'><qemu:frontend>"
        "<qemu:property name='iommufd' type='string' value='mine'/>"
        "</qemu:frontend></qemu:device></qemu:override>",
    )
    edited = _attach(mine, (A, 0), (B, 1))
    assert _objects(edited) == [None, SECOND]
    assert str(editor.remove(edited, A, B)) == str(mine)


def test_a_device_of_the_user_has_libvirts_object(guest):
    shared = _attach(guest, (C, 5), own=False)
    edited = _attach(shared, (A, 0))
    assert iommufd_objects.used_by(edited, A) == FIRST
    assert iommufd_objects.used_by(edited, C) is None


def test_a_vsmmu_whose_devices_share_an_object_is_refused(guest):
    shared = _attach(guest, (A, 0), (B, 1), own=False)
    with pytest.raises(DomainXmlError, match="share an iommufd object with those of other vSMMUs"):
        _attach(shared, (A, 0), (B, 1), (C, 1))


def test_a_running_guest_gets_no_device_on_an_object_of_its_own(guest):
    running = _attach(guest, (A, 0), (B, 1), layout=replace(LAYOUT, spare_ports=1))
    assignments = {C: Assignment("multi-its", "qemu", 1)}
    with pytest.raises(RefusedError, match=r"libvirt applies <qemu:override>.*at startup only"):
        editor.plug(running, _plan((C, 1)), LAYOUT, assignments)
    plugged = editor.plug(running, _plan((C, 0)), LAYOUT, {C: Assignment("multi-its", "qemu", 0)})
    assert [hostdev.host for hostdev in plugged.hostdevs()] == [A, B, C]
    assert [hostdev.host for hostdev in editor.unplug(plugged, B).hostdevs()] == [A, C]


def test_missing_parts_are_named(guest):
    edited = _attach(guest, (A, 0), (B, 1))
    assert gone(Placement(edited), record_in(edited)) == []
    without = DomainXml.parse(str(edited).replace("-object", "-name"), "test")
    assert dropped(edited, without) == [f"-object {FIRST} in <qemu:commandline>"]
    renamed = DomainXml.parse(
        str(edited).replace("qemu:device alias='ua-", "qemu:device alias='ub-"), "test"
    )
    (part,) = gone(Placement(renamed), record_in(renamed))
    assert part == f"the <qemu:override> with iommufd {FIRST} of {B}"


def test_libvirts_that_drop_them_get_none(guest):
    edited = _attach(guest, (A, 0), (B, 1), layout=replace(LAYOUT, iommufd_objects=False))
    assert "qemu:" not in str(edited)
    assert [vsmmu.iommufd for vsmmu in record_in(edited).vsmmus] == [None, None]
