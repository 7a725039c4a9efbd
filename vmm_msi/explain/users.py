"""Who uses a device that faulted, and so whose stage 1 translates for it.

A log names a device or a StreamID, not its user: a guest behind a vSMMU, a guest without one, or a
driver of the host. The definition of a guest and the driver that is bound to the device show it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from vmm_msi.domxml.placement import is_accelerated
from vmm_msi.host.pci.vfio_drivers import host_driver_of, vfio_evidence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_msi.domxml.placement import Placement
    from vmm_msi.explain.explanation import Subject
    from vmm_msi.explain.log_context import LogContext
    from vmm_msi.types import PciAddress


class User(StrEnum):
    """The user of a device; the value is a condition, for messages."""

    #: Stage 1 is the guest's, stage 2 the host's.
    NESTED = "if a guest has the device behind an accelerated vSMMU"
    #: In a guest's log: stage 1 is the guest's, and QEMU walks it.
    EMULATED = "if QEMU emulates the vSMMU"
    #: Stage 1 is the host's; its input addresses are the guest's physical ones.
    PLAIN = "if a guest has the device without a vSMMU"
    #: Stage 1 is the host's DMA API.
    HOST = "if a driver of the host uses the device"


#: In the order in which they are likely for an event in a log.
_ANY = (User.NESTED, User.HOST, User.PLAIN)
_ANY_IN_GUEST = (User.NESTED, User.EMULATED)


def users_of(subjects: Sequence[Subject], context: LogContext) -> tuple[User, ...]:
    """Return the possible users of devices, the most likely first; one if it is certain."""
    if context.in_guest:
        possible = {_in_guest(subject, context) for subject in subjects}
        return possible.pop() if len(possible) == 1 else _ANY_IN_GUEST
    possible = {
        _ANY if subject.address is None else _on_host(subject.address, context)
        for subject in subjects
    }
    return possible.pop() if len(possible) == 1 else _ANY


def _on_host(address: PciAddress, context: LogContext) -> tuple[User, ...]:
    if context.guest_device(address) is not None:
        placement = context.placement
        return (User.NESTED,) if placement is None else _defined(address, placement)
    function = None if context.host is None else context.host.function_by_address.get(address)
    if function is not None and host_driver_of(function) is not None:
        return (User.HOST,)
    if function is not None and vfio_evidence(function) is not None:
        return (User.NESTED, User.PLAIN)
    return _ANY if context.guest is None else (User.HOST, User.NESTED)


def _defined(address: PciAddress, placement: Placement) -> tuple[User, ...]:
    """Return the user of a device that a definition assigns."""
    for hostdev in placement.hostdevs:
        if hostdev.host != address:
            continue
        vsmmu = placement.vsmmu_of(hostdev.element)
        if vsmmu is None and hostdev.guest is None and placement.vsmmus:
            # libvirt picks the bus.
            return (User.NESTED, User.PLAIN)
        return (User.PLAIN,) if vsmmu is None else (User.NESTED,)
    return _ANY


def _in_guest(subject: Subject, context: LogContext) -> tuple[User, ...]:
    """Return whether the vSMMU that reported an event to a guest is accelerated."""
    placement = context.placement
    if placement is None:
        return _ANY_IN_GUEST
    vsmmus = placement.vsmmus
    if subject.guest_address is not None:
        expander = context.expander_bus(subject.guest_address.bus)
        bus = "0" if expander is None else str(expander.index)
        vsmmus = tuple(v for v in vsmmus if placement.bus_of(v) in (bus, None)) or vsmmus
    kinds = {is_accelerated(vsmmu) for vsmmu in vsmmus}
    if len(kinds) != 1:
        return _ANY_IN_GUEST
    return (User.NESTED,) if kinds.pop() else (User.EMULATED,)
