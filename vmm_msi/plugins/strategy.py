"""Bookkeeping that most strategies share, for use in :meth:`Session.state`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm_msi.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Hashable

    from vmm_msi.iommu.backend import S2Handle
    from vmm_msi.plugins.hookspecs import Session
    from vmm_msi.types import Iova, PciAddress


def smmu_of(session: Session, device: PciAddress) -> int:
    """Return the id of the SMMU in front of ``device``.

    :raise RefusedError: when there is none.
    """
    smmu = session.host_device(device).smmu
    if smmu is None:
        raise RefusedError(
            f"{device}: is behind no SMMU, so its MSIs are not translated and there is nothing to "
            "nest; assign a device that is behind one"
        )
    return smmu


def guest_doorbell(session: Session, device: PciAddress) -> Iova:
    """Return the IOVA at which the guest sees the doorbell page (gDB) of ``device``.

    Its stage 1 maps whole granules, so where that is larger than gDB's alignment the doorbell
    page lies inside of one.
    """
    guest_device = session.guest_device(device)
    granule = session.guest.stage1_by_id[guest_device.stage1].granule
    gdb = session.guest.gdb(guest_device)
    return guest_device.giova.align_down(granule).offset(gdb & (granule - 1))


@dataclass
class S2Pool:
    """Stage 2 tables by a key of the strategy's choice, freed with their last device."""

    _tables: dict[Hashable, S2Handle] = field(default_factory=dict)
    _users: dict[Hashable, set[PciAddress]] = field(default_factory=dict)
    _key_of: dict[PciAddress, Hashable] = field(default_factory=dict)

    def attach(
        self, session: Session, device: PciAddress, key: Hashable, *, msi_cookie: bool = True
    ) -> None:
        """Attach ``device`` to the stage 2 of ``key``, allocated if this is its first device.

        :param msi_cookie: see :meth:`Backend.alloc_s2`.
        :raise RefusedError: the kernel's refusal; nothing is left allocated for it.
        """
        smmu = smmu_of(session, device)
        s2 = self._tables.get(key)
        fresh = s2 is None
        if s2 is None:
            s2 = session.backend.alloc_s2(smmu, msi_cookie=msi_cookie)
        try:
            session.backend.attach(device, s2)
        except RefusedError:
            if fresh:
                session.backend.free_s2(s2)
            raise
        self._tables[key] = s2
        self._users.setdefault(key, set()).add(device)
        self._key_of[device] = key

    def detach(self, session: Session, device: PciAddress) -> None:
        """Detach ``device``, and free its stage 2 if it was the last."""
        key = self._key_of.pop(device)
        session.backend.detach(device)
        users = self._users[key]
        users.discard(device)
        if not users:
            del self._users[key]
            session.backend.free_s2(self._tables.pop(key))

    def of(self, device: PciAddress) -> S2Handle:
        """Return the stage 2 that ``device`` is attached to."""
        return self._tables[self._key_of[device]]


@dataclass
class _Doorbell:
    its: int
    users: dict[PciAddress, None]


@dataclass
class DoorbellMaps:
    """Doorbells mapped in stage 2, counted by the devices that use them."""

    _maps: dict[tuple[S2Handle, int], _Doorbell] = field(default_factory=dict)
    _key_of: dict[PciAddress, tuple[S2Handle, int]] = field(default_factory=dict)

    def acquire(self, session: Session, device: PciAddress, s2: S2Handle) -> None:
        """Map the guest's doorbell of ``device`` to that of its ITS, once for all that share it.

        :raise RefusedError: when the doorbell leads to another ITS already; the message names
            both devices and both ITSes. Else the kernel's refusal.
        """
        gdb = session.guest.gdb(session.guest_device(device))
        its = session.its_of(device)
        key = (s2, gdb)
        known = self._maps.get(key)
        if known is None:
            session.backend.map_doorbell(s2, gdb, its)
            known = self._maps[key] = _Doorbell(its, {})
        elif known.its != its:
            other = next(iter(known.users))
            raise RefusedError(
                f"binding doorbell {gdb} of {device} to ITS {its}: conflict, {other} has it bound "
                f"to ITS {known.its} in the same stage 2; a stage 2 per ITS (multi-its) or a "
                "virtual ITS per physical ITS would work"
            )
        known.users[device] = None
        self._key_of[device] = key

    def release(self, session: Session, device: PciAddress) -> None:
        """Let go of the device's doorbell, and unmap it if no other device uses it."""
        key = self._key_of.pop(device, None)
        if key is None:
            return
        known = self._maps[key]
        del known.users[device]
        if not known.users:
            del self._maps[key]
            gdb = session.guest.gdb(session.guest_device(device))
            session.backend.unmap_doorbell(key[0], gdb)
