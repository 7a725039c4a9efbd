"""Strategies that break the contract, one rule each."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from vmm_msi.plugins import (
    SW_MSI_WINDOW,
    BackendError,
    Capability,
    GuestPlan,
    MsiAllocator,
    Needs,
    Options,
    RefusedError,
    S2Pool,
    Strategy,
    VsmmuPlan,
    guest_doorbell,
    smmu_of,
)


class Sound(Strategy):
    """What the base class does."""

    summary = "the defaults"

    @property
    def name(self):
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in type(self).__name__)[1:]

    def needs(self, options):
        return Needs(Capability.SW_MSI, frozenset({Capability.SW_MSI}))


class NoReason(Sound):
    def vmm_msi_attach_device(self, session, device):
        raise RefusedError("")


class Undeclared(Sound):
    def vmm_msi_prepare_msi(self, session, device):
        session.backend.prepare_msi(device)
        return session.backend.program_msi(device, guest_doorbell(session, device))


class HiddenRmr(Sound):
    def vmm_msi_attach_domain(self, session):
        session.backend.advertise_rmr(SW_MSI_WINDOW)

    def vmm_msi_detach_domain(self, session):
        session.backend.withdraw_rmr()


class NotQemu(Undeclared):
    def needs(self, options):
        needs = super().needs(options)
        more = {Capability.MSI_ADDRESS_WRITE, Capability.SW_MSI_SLOTS}
        return replace(needs, capabilities=needs.capabilities | more, qemu=True)


class Forgetful(Sound):
    """Leaves a stage 2 when the attach is refused."""

    def vmm_msi_attach_device(self, session, device):
        s2 = session.backend.alloc_s2(smmu_of(session, device), allocator=MsiAllocator.KERNEL)
        session.backend.attach(device, s2)
        session.state(dict)[device] = s2

    def vmm_msi_detach_device(self, session, device):
        session.backend.detach(device)
        session.backend.free_s2(session.state(dict).pop(device))


class NoErrno(Sound):
    def vmm_msi_prepare_msi(self, session, device):
        try:
            return session.backend.prepare_msi(device)
        except BackendError as error:
            raise RefusedError(f"{device}: no address") from error


class KeepsRmr(Sound):
    def needs(self, options):
        return replace(super().needs(options), rmr=True)

    def vmm_msi_attach_domain(self, session):
        session.backend.advertise_rmr(SW_MSI_WINDOW)


class Leaks(Sound):
    def vmm_msi_attach_domain(self, session):
        session.backend.alloc_s2(0)


class Remembers(Sound):
    served: ClassVar[set[object]] = set()

    def vmm_msi_attach_device(self, session, device):
        if device in self.served:
            raise RefusedError(f"{device}: served already")
        super().vmm_msi_attach_device(session, device)
        self.served.add(device)


class PlansByMood(Sound):
    plans: ClassVar[list[object]] = []

    def vmm_msi_plan_domain(self, session):
        self.plans.append(session)
        devices = tuple(device.host for device in session.guest.devices)
        return GuestPlan((VsmmuPlan(0, devices),), iommufd=len(self.plans) % 2 == 0)


class PlansAtOnce(Sound):
    def vmm_msi_plan_domain(self, session):
        session.backend.free_s2(session.backend.alloc_s2(0))


class UnbindsOnce(Sound):
    def vmm_msi_bind_doorbell(self, session, device):
        session.state(set).add(device)

    def vmm_msi_unbind_doorbell(self, session, device):
        session.state(set).remove(device)


class Raises(Sound):
    def vmm_msi_bind_doorbell(self, session, device):
        raise KeyError("gdb")


class ProfileOptions(Options, frozen=True):
    profile: str = "x"


class TakesProfile(Sound):
    options = ProfileOptions


class TupleOptions(Options, frozen=True):
    pages: tuple[int, ...] = (1,)


class TakesTuple(Sound):
    options = TupleOptions


class TwoPools(Sound):
    """Detaches through another object than it attached with."""

    def vmm_msi_detach_device(self, session, device):
        S2Pool().detach(session, device)
