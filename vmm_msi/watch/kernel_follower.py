"""Follow the guests of one connection whose devices the kernel binds: log, count, record."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.errors import UnreadableError, VmmMsiError
from vmm_msi.host.msi_bindings import BindingAllocator, GiovaSource
from vmm_msi.types import (
    ITS_TRANSLATER_OFFSET,
    ITS_TRANSLATER_PAGE_OFFSET,
    BinderKind,
    Outcome,
)
from vmm_msi.watch.kernel_binder import BindingResult, KernelBinder
from vmm_msi.watch.service_log import LogEvent, log_event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm_msi.domxml.bound_metadata import BoundDevice, BoundGuest
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.errors import HypervisorError
    from vmm_msi.host.msi_bindings import MsiBindingsFile
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.types import PciAddress
    from vmm_msi.watch.statistics import Statistics

# Of the doorbell in its page, of the guest's ITS as of the host's.
_OFFSET = ITS_TRANSLATER_OFFSET - ITS_TRANSLATER_PAGE_OFFSET

#: Seconds between two looks at a guest's MSIs: first for QUICK_FOR_S after it started, was reset or
#: got a device, then.
QUICK_S = 0.1
QUICK_FOR_S = 60.0
SLOW_S = 1.0


class KernelFollower:
    """Has the kernel's bindings follow the guests of one connection, in one thread.

    :param file: the kernel's file; None to open this machine's.
    """

    def __init__(
        self, uri: str, statistics: Statistics, file: MsiBindingsFile | None = None
    ) -> None:
        self._uri = uri
        self._statistics = statistics
        self._binder = KernelBinder(file)
        #: The errors that were logged last, by guest and device.
        self._refusals: dict[tuple[str, PciAddress], str] = {}
        self._unread: dict[tuple[str, PciAddress], str] = {}
        #: When the MSIs of a device were read last.
        self._read_at: dict[tuple[str, PciAddress], float] = {}
        self._quick_until = 0.0
        self._next = 0.0

    def hurry(self) -> None:
        """Look at the guests' MSIs often from now on, for a while."""
        self._quick_until = time.monotonic() + QUICK_FOR_S
        self._next = 0.0

    def wait(self) -> float:
        """Return the seconds until the next look is due."""
        return max(0.0, self._next - time.monotonic())

    def looked(self) -> None:
        """Note that all guests were looked at."""
        now = time.monotonic()
        self._next = now + (QUICK_S if now < self._quick_until else SLOW_S)

    def is_refused_by_kernel(self, uuid: str, device: PciAddress) -> bool:
        """Return whether the kernel refused a device's binding, so that it is tried again."""
        return (uuid, device) in self._refusals

    def converge(
        self,
        connection: Connection,
        uuid: str,
        xml: DomainXml,
        bound: BoundGuest,
        allocators: Mapping[PciAddress, BindingAllocator],
    ) -> BoundGuest:
        """Have the kernel's bindings of a guest's devices converge to what the guest wrote.

        :param bound: the bound devices of the guest.
        :param allocators: those that the kernel is to bind, and the allocator of each.
        :return: ``bound`` with the outcomes after that.
        :raise HypervisorError: when the connection is lost.
        """
        try:
            results = self._binder.converge(connection, uuid, xml, allocators)
        except UnreadableError as error:
            results = [BindingResult(device, None, error) for device in allocators]
        failed = any(r.error is not None or r.unread is not None for r in results)
        if failed and uuid not in connection.running():
            return bound  # it stopped meanwhile; its event follows
        by_device = {result.device: result for result in results}
        devices = tuple(
            self._outcome(uuid, xml.name, device, by_device[device.host], allocators[device.host])
            if device.host in by_device
            else device
            for device in bound.devices
        )
        return replace(bound, devices=devices)

    def _outcome(
        self,
        uuid: str,
        domain: str,
        device: BoundDevice,
        result: BindingResult,
        allocator: BindingAllocator,
    ) -> BoundDevice:
        key = uuid, device.host
        now = time.monotonic()
        seconds = now - self._read_at.get(key, now)
        self._read_at[key] = now
        plan = result.plan
        if result.error is not None or plan is None:
            self._refused(key, domain, result.error)
            return replace(device, programmed=(), outcome=Outcome.REFUSED)
        self._refusals.pop(key, None)
        self._unreadable(key, domain, result.unread)
        giova = plan.binding.giova
        if plan.commands:
            before = plan.before[0].giova if plan.before else None
            corrected = before not in {None, giova} and plan.source is GiovaSource.GUEST
            if corrected or plan.source is not GiovaSource.GUEST:
                # A reset, another kernel or driver: the guest is about to write others.
                self.hurry()
            if corrected:
                self._statistics.corrected()
            log_event(
                LogEvent.GIOVA_CORRECTED if corrected else LogEvent.KERNEL_BOUND,
                logging.WARNING if corrected else logging.INFO,
                uri=self._uri,
                domain=domain,
                device=device.host,
                giova=giova,
                gdb=plan.binding.gdb,
                source=plan.source,
                before=before,
                seconds=round(seconds, 3) if corrected else None,
            )
        was_refused = device.outcome is Outcome.REFUSED
        if not was_refused and allocator is not BindingAllocator.DIRECT:
            return device  # it may be programmed with the entry of another device, as predicted
        outcome = Outcome.DELIVERED if was_refused else device.outcome
        return replace(device, programmed=(giova.offset(_OFFSET),), outcome=outcome)

    def _unreadable(
        self, key: tuple[str, PciAddress], domain: str, error: HypervisorError | None
    ) -> None:
        """Log why the guest's MSIs cannot be read, unless it was logged last."""
        if error is not None and self._unread.get(key) != str(error):
            self._statistics.failure("guest")
            log_event(
                LogEvent.FAILED,
                logging.ERROR,
                uri=self._uri,
                domain=domain,
                device=key[1],
                error=error,
            )
        self._unread[key] = str(error or "")

    def _refused(self, key: tuple[str, PciAddress], domain: str, error: VmmMsiError | None) -> None:
        """Log a refusal, unless it is the one that was logged last."""
        if self._refusals.get(key) == str(error):
            return
        self._refusals[key] = str(error)
        self._statistics.failure("guest")
        log_event(
            LogEvent.KERNEL_REFUSED,
            logging.ERROR,
            uri=self._uri,
            domain=domain,
            device=key[1],
            error=error,
        )

    def withdraw(self, uuid: str, devices: Sequence[BoundDevice]) -> None:
        """Withdraw the bindings of devices that the kernel bound and no longer is to bind.

        :raise VmmMsiError: when the kernel refuses.
        """
        own = [device.host for device in devices if device.by == BinderKind.KERNEL]
        for device in own:
            self._refusals.pop((uuid, device), None)
            self._read_at.pop((uuid, device), None)
        self._binder.withdraw(own)

    def forget(self, uuid: str) -> None:
        """Drop what is known of a guest that stopped; the kernel dropped its bindings."""
        self._binder.forget(uuid)
        for table in (self._refusals, self._unread, self._read_at):
            for key in [key for key in table if key[0] == uuid]:
                del table[key]
