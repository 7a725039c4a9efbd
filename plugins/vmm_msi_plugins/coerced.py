"""coerced: the guest's bindings are registered and the host's allocator is made to pick one.

"SMMUv3 Nested Stage Setup" (2018-2021). Its revisions differ in the kernel, not here, and each can
be tried in two worlds: on a nest parent of iommufd, where a stage 2 may serve several stage 1s
(``linux-7.2-bind``, the default), and in the VFIO containers of the series (``profile=series-vN``).
"""

from __future__ import annotations

from typing import Literal

from vmm_msi.plugins import (
    Capability,
    MsiAllocator,
    Needs,
    Options,
    PciAddress,
    S2Pool,
    Session,
    Strategy,
    bind_doorbell,
    smmu_of,
    unbind_doorbell,
)


class CoercedOptions(Options, frozen=True):
    """Options of the strategy.

    :param revision: revision of the series whose allocator is used: v2 has a list of bindings, v4
        a device handle with each, v8 one MSI domain, v15 compares granules.
    """

    revision: Literal["v2", "v4", "v8", "v15"] = "v15"


class _Bound:
    """The devices whose binding is registered."""

    def __init__(self) -> None:
        self.devices: set[PciAddress] = set()


class Coerced(Strategy):
    """The strategy."""

    name = "coerced"
    summary = "register the guest's bindings and make the host's allocator use them"
    options = CoercedOptions
    guest = "one stage 1 for all devices of a host ITS, or the same gIOVA in each"
    host = "a kernel with the series of 2018-2021 or with guest bindings in iommufd"
    xml = "vSMMUs and hostdevs; QEMU cannot bind it"
    costs = "one S2 per physical SMMU, a binding per gIOVA, one S2 mapping per physical ITS"

    def needs(self, options: CoercedOptions) -> Needs:
        """Require the interface of the revision."""
        interface = Capability(f"guest-binding-{options.revision}")
        return Needs(interface=interface, capabilities=frozenset({interface}))

    def vmm_msi_attach_device(self, session: Session, device: PciAddress) -> None:
        """Attach to the one stage 2 of the device's SMMU, with the allocator of the revision."""
        allocator = MsiAllocator(session.options_as(CoercedOptions).revision)
        session.state(S2Pool).attach(session, device, smmu_of(session, device), allocator=allocator)

    def vmm_msi_bind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Register gIOVA -> gDB with the size of the guest's stage 1 granule."""
        bind_doorbell(session, device)
        session.state(_Bound).devices.add(device)

    def vmm_msi_unbind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Withdraw the device's binding if it is registered and the revision can."""
        bound = session.state(_Bound).devices
        if device in bound and Capability.GUEST_UNBIND in session.backend.info.capabilities:
            unbind_doorbell(session, device)
        bound.discard(device)
