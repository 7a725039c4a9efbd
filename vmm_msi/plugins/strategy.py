"""The base class of strategies, and the bookkeeping that most strategies share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmm_msi.errors import RefusedError
from vmm_msi.iommu.backend import Capability, MsiAllocator
from vmm_msi.plugins.base import Plugin
from vmm_msi.plugins.hookspecs import Options, PluginInfo, PluginKind

if TYPE_CHECKING:
    from collections.abc import Hashable

    from vmm_msi.iommu.backend import S2Handle
    from vmm_msi.plugins.hookspecs import Needs, Session
    from vmm_msi.types import Granule, GuestPlan, Iova, PciAddress


class Strategy(Plugin):
    """A strategy that leaves the host's MSI allocator alone; override what yours does differently.

    By default there is one stage 2 per physical SMMU, nothing is bound, and the kernel picks the
    address in the device. The methods are specified in :mod:`vmm_msi.plugins.hookspecs`. A
    strategy keeps no state of its own: see :meth:`Session.state`.

    :cvar options: the type of its options.
    :cvar guest: what it requires of the guest, in a sentence.
    :cvar host: what it requires of the host, in a sentence.
    :cvar xml: what it writes into the domain XML, in a sentence.
    :cvar costs: what it costs, in a sentence.
    """

    kind = PluginKind.STRATEGY
    options: type[Options] = Options
    guest: str = ""
    host: str = ""
    xml: str = ""
    costs: str = ""

    @abstractmethod
    def needs(self, options: Any) -> Needs:  # noqa: ANN401 - a subclass names its own type
        """Return what the strategy requires of backend and guest.

        :param options: of the type :attr:`options`.
        """

    def vmm_msi_describe(self) -> PluginInfo:
        """Describe the strategy by its attributes."""
        return PluginInfo(
            name=self.name,
            kind=self.kind,
            summary=self.summary,
            options=self.options,
            needs=self.needs,
            guest=self.guest,
            host=self.host,
            xml=self.xml,
            costs=self.costs,
        )

    def vmm_msi_plan_domain(self, session: Session) -> GuestPlan | None:
        """Leave the plan to vmm-msi: one accelerated vSMMU per physical SMMU."""

    def vmm_msi_attach_domain(self, session: Session) -> None:
        """Prepare nothing for the guest as a whole."""

    def vmm_msi_attach_device(self, session: Session, device: PciAddress) -> None:
        """Attach to the one stage 2 of the device's SMMU, with the kernel's own allocator in it."""
        session.state(S2Pool).attach(session, device, smmu_of(session, device))

    def vmm_msi_bind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Bind nothing."""

    def vmm_msi_prepare_msi(self, session: Session, device: PciAddress) -> Iova | None:
        """Let the kernel pick the address."""
        return session.backend.prepare_msi(device)

    def vmm_msi_unbind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Unmap the doorbell if :class:`DoorbellMaps` mapped it and no other device uses it."""
        session.state(DoorbellMaps).release(session, device)

    def vmm_msi_detach_device(self, session: Session, device: PciAddress) -> None:
        """Detach from the :class:`S2Pool`, which frees the stage 2 with its last device."""
        session.state(S2Pool).detach(session, device)

    def vmm_msi_detach_domain(self, session: Session) -> None:
        """Undo nothing for the guest as a whole."""


def smmu_of(session: Session, device: PciAddress) -> int:
    """Return the id of the SMMU in front of ``device``.

    :raise RefusedError: when no SMMU is in front of it.
    """
    smmu = session.host_device(device).smmu
    if smmu is None:
        raise RefusedError(
            f"{device}: not behind an SMMU, so nothing translates its MSIs and nothing can be "
            "nested; assign a device behind an SMMU"
        )
    return smmu


def guest_doorbell(session: Session, device: PciAddress) -> Iova:
    """Return the IOVA at which the guest sees the doorbell page (gDB) of ``device``.

    The guest's stage 1 maps whole granules, so where the granule is larger than gDB's alignment
    the doorbell page lies within it.
    """
    gdb = session.guest.gdb(session.guest_device(device))
    return _giova_page(session, device).offset(gdb & (_stage1_granule(session, device) - 1))


def bind_doorbell(session: Session, device: PciAddress) -> None:
    """Have the kernel bind the guest's doorbell of ``device``, by its page of stage 1.

    :raise RefusedError: the kernel's refusal.
    """
    granule = _stage1_granule(session, device)
    gdb = session.guest.gdb(session.guest_device(device)).align_down(granule)
    session.backend.bind_guest_msi(device, _giova_page(session, device), gdb, granule)


def unbind_doorbell(session: Session, device: PciAddress) -> None:
    """Withdraw what :func:`bind_doorbell` bound."""
    session.backend.unbind_guest_msi(device, _giova_page(session, device))


def _stage1_granule(session: Session, device: PciAddress) -> Granule:
    return session.guest.stage1_by_id[session.guest_device(device).stage1].granule


def _giova_page(session: Session, device: PciAddress) -> Iova:
    return session.guest_device(device).giova.align_down(_stage1_granule(session, device))


@dataclass
class S2Pool:
    """Stage 2 tables by a key of the strategy's choice, freed with their last device."""

    _tables: dict[Hashable, S2Handle] = field(default_factory=dict)
    _users: dict[Hashable, set[PciAddress]] = field(default_factory=dict)
    _key_of: dict[PciAddress, Hashable] = field(default_factory=dict)
    _s2_of: dict[PciAddress, S2Handle] = field(default_factory=dict)

    def attach(
        self,
        session: Session,
        device: PciAddress,
        key: Hashable,
        *,
        allocator: MsiAllocator = MsiAllocator.KERNEL,
        own_file: bool = False,
    ) -> None:
        """Attach ``device`` to the stage 2 of ``key``, allocated for the first device.

        :param allocator: see :meth:`Backend.alloc_s2`.
        :param own_file: allocate it on a file descriptor of /dev/iommu of its own.
        :raise RefusedError: the kernel's refusal; nothing stays allocated for the device.
        """
        smmu = smmu_of(session, device)
        s2 = self._tables.get(key)
        is_new = s2 is None
        if s2 is None:
            first = device if own_file else None
            s2 = session.backend.alloc_s2(smmu, allocator=allocator, own_file=first)
        try:
            attached_to = session.backend.attach(device, s2)
        except RefusedError:
            if is_new:
                session.backend.free_s2(s2)
            raise
        self._tables[key] = s2
        self._users.setdefault(key, set()).add(device)
        self._key_of[device] = key
        self._s2_of[device] = attached_to

    def detach(self, session: Session, device: PciAddress) -> None:
        """Detach ``device``, and free its stage 2 if it was the last.

        :raise LookupError: when the pool did not attach the device.
        """
        if device not in self._key_of:
            raise LookupError(
                f"S2Pool did not attach {device}; a strategy that attaches in another way "
                "overrides vmm_msi_detach_device, too"
            )
        key = self._key_of.pop(device)
        del self._s2_of[device]
        session.backend.detach(device)
        users = self._users[key]
        users.discard(device)
        if not users:
            del self._users[key]
            session.backend.free_s2(self._tables.pop(key))

    def of(self, device: PciAddress) -> S2Handle:
        """Return the stage 2 that ``device`` is attached to."""
        return self._s2_of[device]


@dataclass
class _DoorbellMap:
    """A doorbell in a stage 2: the ITS behind it and the devices that use it."""

    its: int
    users: dict[PciAddress, None]


@dataclass
class DoorbellMaps:
    """Doorbells mapped in stage 2, counted by the devices that use them.

    A kernel that takes a binding for one device maps the page itself, and writes the address.
    """

    _maps: dict[tuple[S2Handle, int], _DoorbellMap] = field(default_factory=dict)
    _key_of: dict[PciAddress, tuple[S2Handle, int]] = field(default_factory=dict)

    def acquire(self, session: Session, device: PciAddress, s2: S2Handle) -> None:
        """Map the guest's doorbell of ``device`` to that of its ITS, once for all that share it.

        :param s2: the stage 2 that the device is attached to.
        :raise RefusedError: when the doorbell leads to another ITS already; the message names
            both devices and both ITSes. Else the kernel's refusal.
        """
        gdb = session.guest.gdb(session.guest_device(device))
        its = session.its_of(device)
        key = (s2, gdb)
        mapping = self._maps.get(key)
        if mapping is not None and mapping.its != its:
            other = next(iter(mapping.users))
            raise RefusedError(
                f"binding doorbell {gdb} of {device} to ITS {its}: conflict, {other} has it bound "
                f"to ITS {mapping.its} in the same stage 2; use a stage 2 per ITS "
                "(multi-its:mode=s2), or give the guest a virtual ITS per physical ITS"
            )
        if _binds(session):
            bind_doorbell(session, device)
        elif mapping is None:
            session.backend.map_doorbell(s2, gdb, its)
        if mapping is None:
            mapping = self._maps[key] = _DoorbellMap(its, {})
        mapping.users[device] = None
        self._key_of[device] = key

    @staticmethod
    def program(session: Session, device: PciAddress) -> Iova:
        """Have the guest's address of the doorbell in ``device``; return the MSI address.

        :raise RefusedError: the kernel's refusal.
        """
        if _binds(session):
            return session.backend.prepare_msi(device)
        return session.backend.program_msi(device, guest_doorbell(session, device))

    def release(self, session: Session, device: PciAddress) -> None:
        """Release the device's doorbell, and unmap it if no other device uses it.

        A device without a doorbell here is left alone.
        """
        key = self._key_of.pop(device, None)
        if key is None:
            return
        mapping = self._maps[key]
        del mapping.users[device]
        if _binds(session):
            unbind_doorbell(session, device)
        if not mapping.users:
            del self._maps[key]
            if not _binds(session):
                gdb = session.guest.gdb(session.guest_device(device))
                session.backend.unmap_doorbell(key[0], gdb)


def _binds(session: Session) -> bool:
    return Capability.GUEST_BINDING_DIRECT in session.backend.info.capabilities
