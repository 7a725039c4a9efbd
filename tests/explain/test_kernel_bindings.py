"""Faults of a device whose doorbell the kernel binds name the binding that is missing or wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
from doctor.cases import HOST, A
from doctor.guest_cases import rendered
from event_lines import decoded

from vmm_msi.domxml.guest_buses import guest_addresses
from vmm_msi.domxml.guest_domain import guest_from_xml
from vmm_msi.domxml.placement import Placement
from vmm_msi.explain.explainer import explain
from vmm_msi.explain.log_context import LogContext
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.report.explain import to_lines
from vmm_msi.types import Iova, Ipa, StreamId

BINDS = replace(HOST, msi_bindings=1)
#: The device in the guest.
(PLACE,) = guest_addresses(Placement(rendered(A)))


def explained(log, *, in_guest, strategy="direct"):
    xml = rendered(A, strategy=strategy, host=BINDS)
    context = LogContext(BINDS, guest_from_xml(xml), xml, in_guest)
    return "\n".join(to_lines(explain(log, context)))


def guest_fault(iova):
    """Return an event of stage 1 as the guest's kernel logs it."""
    event = SmmuEvent(EventKind.F_TRANSLATION, 1, StreamId(PLACE.rid), Iova(iova), Ipa(0))
    return "\n".join(decoded(event, PLACE))


def host_fault(iova, ipa):
    """Return an event of stage 2 as the host's kernel logs it."""
    event = SmmuEvent(EventKind.F_TRANSLATION, 2, StreamId(0x100), Iova(iova), Ipa(ipa))
    return "\n".join(decoded(event, A))


def test_no_binding():
    """The slot in the guest's log, from a guest without an RMR."""
    text = " ".join(explained(guest_fault(0x8000040), in_guest=True).split())
    assert "has no binding of it" in text
    assert "binding: the guest's gIOVA -> 0x8090000" in text
    assert "vmm-msi bind guest0" in text


def test_another_giova():
    text = " ".join(explained(guest_fault(0xFFFF0040), in_guest=True).split())
    assert "binding in the kernel has gIOVA 0xffff0000" in text
    assert "the guest uses another gIOVA" in text


def test_another_gdb():
    text = " ".join(explained(host_fault(0xFFFFF040, 0x8090000), in_guest=False).split())
    assert "is missing or has another gDB" in text
    assert "binding: gIOVA 0xfffff000 -> 0x8090000 (gDB)" in text


@pytest.mark.parametrize(
    ("log", "in_guest"),
    [
        (guest_fault(0x8000040), True),
        (guest_fault(0xFFFF0040), True),
        (host_fault(0xFFFFF040, 0x8090000), False),
    ],
)
def test_a_device_that_qemu_binds_has_no_binding(log, in_guest):
    assert "vmm-msi bind" not in explained(log, in_guest=in_guest, strategy="identity")
