"""coerced: the guest's bindings are registered and the host's allocator is made to pick one.

"SMMUv3 Nested Stage Setup" (2018-2021). Revisions differ in the kernel, not here: ``v2`` and
``v3`` cannot withdraw a binding, ``v3`` keeps devices apart, ``v8`` and ``v15`` refuse devices
with another ITS, ``v15`` refuses a stage 1 granule larger than that of stage 2.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from vmm_msi.plugins import (
    Capability,
    Iova,
    Needs,
    Options,
    PciAddress,
    S2Handle,
    S2Pool,
    Session,
    Strategy,
)

_INTERFACE = {
    "v2": Capability.GUEST_BINDING_V2,
    "v3": Capability.GUEST_BINDING_V3,
    "v8": Capability.GUEST_BINDING_V8,
    "v15": Capability.GUEST_BINDING_V15,
}


class CoercedOptions(Options, frozen=True):
    """Options of the strategy.

    :param revision: revision of the series whose allocator is used.
    """

    revision: Literal["v2", "v3", "v8", "v15"] = "v15"


@dataclass
class _BindingUsers:
    """Devices per binding: devices that share a stage 1 share its binding."""

    count: Counter[tuple[S2Handle, Iova]] = field(default_factory=Counter)


class Coerced(Strategy):
    """The strategy."""

    name = "coerced"
    summary = "register the guest's bindings and make the host's allocator use them"
    options = CoercedOptions
    guest = "one stage 1 for all devices of a host ITS, or the same gIOVA in each"
    host = "a kernel with the series of 2018-2021, or the simulator"
    xml = "vSMMUs and hostdevs; QEMU cannot bind it"
    costs = "one S2 per physical SMMU, a binding per gIOVA, one S2 mapping per physical ITS"

    def needs(self, options: CoercedOptions) -> Needs:
        """Require the interface of the revision."""
        interface = _INTERFACE[options.revision]
        return Needs(interface=interface, capabilities=frozenset({interface}))

    def vmm_msi_bind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Register gIOVA -> gDB with the size of the guest's stage 1 granule."""
        guest_device = session.guest_device(device)
        granule = session.guest.stage1_by_id[guest_device.stage1].granule
        gdb = session.guest.gdb(guest_device)
        session.backend.bind_guest_msi(device, guest_device.giova, gdb, granule)
        s2 = session.state(S2Pool).of(device)
        session.state(_BindingUsers).count[s2, guest_device.giova] += 1

    def vmm_msi_unbind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Withdraw the binding when no other device uses it, where the revision can."""
        giova = session.guest_device(device).giova
        count = session.state(_BindingUsers).count
        key = (session.state(S2Pool).of(device), giova)
        count[key] -= 1
        if not count[key]:
            del count[key]
            if Capability.GUEST_UNBIND in session.backend.info.capabilities:
                session.backend.unbind_guest_msi(device, giova)
