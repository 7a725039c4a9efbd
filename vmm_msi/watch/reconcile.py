"""Reconcile the guests of one connection with their records.

The process may be killed at any point: a device is written into the guest's live metadata before
it is bound, and again with its outcome afterwards. The next process resumes from there:

* a device with an outcome is bound and stays so;
* a device without an outcome may be half bound: it is unbound and bound again;
* a device that is not in the record is unbound.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.domxml.bound_metadata import NAMESPACE, PREFIX, BoundGuest, bound_xml, read_bound
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.errors import DomainXmlError, HypervisorError, VmmMsiError
from vmm_msi.types import BinderKind, Outcome
from vmm_msi.watch.binder import allocators_of, desired_bindings, guest_with_devices
from vmm_msi.watch.kernel_follower import KernelFollower
from vmm_msi.watch.service_log import LogEvent, log_event

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from vmm_msi.domxml.bound_metadata import BoundDevice
    from vmm_msi.host.msi_bindings import MsiBindingsFile
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.types import GuestDomain
    from vmm_msi.watch.binder import SimBinder
    from vmm_msi.watch.statistics import Statistics

# Both namespaces of vmm-msi begin with it; a guest without it is not managed by vmm-msi.
_NAMESPACE_BASE = "https://vmm-msi.org/xmlns/libvirt/"


@dataclass(frozen=True)
class WatchedGuest:
    """A running guest with bound devices, as this process knows it.

    :param guest: the guest with at least the devices of ``bound``.
    :param xml: its live XML.
    """

    name: str
    guest: GuestDomain
    bound: BoundGuest
    xml: DomainXml


@dataclass(frozen=True)
class _LiveGuest:
    """A running guest, as its live XML describes it.

    :param stored: the bound devices in its metadata, of this run or of an earlier one.
    """

    uuid: str
    xml: DomainXml
    run: int
    stored: BoundGuest | None


class Reconciler:
    """Reconcile the guests of one connection, in one thread.

    :param beat: called before each guest, as a sign of life.
    :param file: the kernel's file of guest MSI bindings; None to open this machine's.
    """

    def __init__(
        self,
        uri: str,
        statistics: Statistics,
        beat: Callable[[], None] = lambda: None,
        file: MsiBindingsFile | None = None,
    ) -> None:
        #: The guests with bound devices, by UUID.
        self.watched: dict[str, WatchedGuest] = {}
        #: The first error of the last reconcile.
        self.failure: VmmMsiError | None = None
        self._uri = uri
        self._statistics = statistics
        self._beat = beat
        self._follower = KernelFollower(uri, statistics, file)

    def reconcile(
        self, connection: Connection, binder: SimBinder, rebooted: Collection[str] = ()
    ) -> list[str]:
        """Reconcile every running guest and every guest that stopped since the last time.

        :param rebooted: the UUIDs of guests that were reset.
        :return: the UUIDs of guests to check again, because libvirt refused a call.
        :raise HypervisorError: when the connection is lost.
        """
        start = time.monotonic()
        self.failure = None
        running = connection.running()
        stopped = self.watched.keys() - set(running)
        retry = [
            uuid
            for uuid in (*sorted(stopped), *running)
            if not self.check(connection, binder, uuid, rebooted=uuid in rebooted)
        ]
        seconds = time.monotonic() - start
        self._statistics.reconciled(seconds)
        log_event(
            LogEvent.RECONCILED,
            uri=self._uri,
            running=len(running),
            watched=len(self.watched),
            seconds=round(seconds, 3),
        )
        return retry

    def check(
        self, connection: Connection, binder: SimBinder, uuid: str, *, rebooted: bool = False
    ) -> bool:
        """Reconcile one guest and log a failure.

        :param rebooted: the guest was reset since its last check, so no device is bound any more.
        :return: False if the guest should be checked again later.
        :raise HypervisorError: when the connection is lost.
        """
        self._beat()
        try:
            self._reconcile_guest(connection, binder, uuid, rebooted=rebooted)
        except VmmMsiError as error:
            if isinstance(error, HypervisorError) and not connection.is_alive():
                raise
            self._failed(error, uuid=uuid)
            return not isinstance(error, HypervisorError)
        return True

    def wait(self) -> float | None:
        """Return the seconds until :meth:`follow` is due; None if the kernel binds no device."""
        followed = any(map(_by_kernel, self.watched.values()))
        return self._follower.wait() if followed else None

    def follow(self, connection: Connection, binder: SimBinder) -> None:
        """Have the kernel's bindings follow what the guests wrote since the last time.

        :raise HypervisorError: when the connection is lost.
        """
        for uuid in [uuid for uuid, watched in self.watched.items() if _by_kernel(watched)]:
            self._beat()
            try:
                self._converge(connection, binder, uuid)
            except VmmMsiError as error:
                if isinstance(error, HypervisorError) and not connection.is_alive():
                    raise
                self._failed(error, uuid=uuid)
        self._follower.looked()

    def _converge(self, connection: Connection, binder: SimBinder, uuid: str) -> None:
        """Have the kernel's bindings of one guest converge; write the outcomes that changed."""
        watched = self.watched.get(uuid)
        if watched is None:
            return
        allocators = allocators_of(
            binder.plugins,
            (
                device
                for device in watched.bound.devices
                if device.outcome is not Outcome.REFUSED
                or self._follower.is_refused_by_kernel(uuid, device.host)
            ),
        )
        if not allocators:
            return
        xml, before = watched.xml, watched.bound
        bound = self._follower.converge(connection, uuid, xml, before, allocators)
        if bound != before:
            live = _LiveGuest(uuid, xml, before.run, before)
            self._remember(live, bound)
            self._write(connection, live, bound)

    def _reconcile_guest(
        self, connection: Connection, binder: SimBinder, uuid: str, *, rebooted: bool
    ) -> None:
        text = connection.live_text(uuid)
        watched = self.watched.get(uuid)
        if text is None or _NAMESPACE_BASE not in text:
            if watched is not None:
                self._forget(connection, binder, uuid, watched)
            return
        live = self._parse(uuid, text)
        if watched is not None and watched.bound.run != live.run:
            self._forget(connection, binder, uuid, watched)
            watched = None
        # The memory of this process comes first: its last write to libvirt may have failed.
        current = live.stored
        if watched is not None:
            current = watched.bound
        elif current is not None and current.run != live.run:
            current = None
        selector = binder.settings.its_selector(live.xml.name)
        desired = desired_bindings(live.xml, live.run, selector)
        kept: tuple[BoundDevice, ...] = ()
        if current is not None and current.selector == selector and not rebooted:
            # A refusal of the kernel is tried again by a process that does not remember it.
            kept = tuple(
                device
                for device in current.devices
                if device.outcome is not None
                and any(map(device.is_same, desired.devices))
                and not (watched is None and _is_refused_in_kernel(device))
            )
        unchanged = replace(desired, devices=kept)
        gone = tuple(d for d in current.devices if d not in kept) if current is not None else ()
        new = tuple(d for d in desired.devices if not any(map(d.is_same, kept)))
        if rebooted and gone:
            log_event(LogEvent.GUEST_REBOOTED, uri=self._uri, domain=live.xml.name)
        if current is not None and gone:
            guest = guest_with_devices(live.xml, current.devices)
            bound_so_far = WatchedGuest(live.xml.name, guest, current, live.xml)
            self._unbind(connection, binder, bound_so_far, kept, gone)
            # A reset keeps the bindings: the guest may already use them again.
            left = [d for d in gone if not any(map(d.is_same, desired.devices))]
            self._follower.withdraw(uuid, left)
        self._remember(live, unchanged)
        if new:
            self._follower.hurry()
            self._bind(connection, binder, live, unchanged, new)
        elif live.stored != (unchanged if kept else None):
            self._write(connection, live, unchanged)
        self._converge(connection, binder, uuid)

    def _parse(self, uuid: str, text: str) -> _LiveGuest:
        xml = DomainXml.parse(text, f"guest {uuid} at {self._uri}")
        run = xml.root.get("id", "")
        if not (run.isascii() and run.isdigit()):
            raise DomainXmlError(
                f"reading guest {xml.name} at {self._uri}: its id is {run!r}; the id of a running "
                "guest is a number"
            )
        return _LiveGuest(uuid, xml, int(run), read_bound(xml))

    def _bind(
        self,
        connection: Connection,
        binder: SimBinder,
        live: _LiveGuest,
        unchanged: BoundGuest,
        new: Sequence[BoundDevice],
    ) -> None:
        """Bind ``new`` in addition to ``unchanged``; write the devices down in advance."""
        begun = replace(unchanged, devices=(*unchanged.devices, *new))
        if not self._write(connection, live, begun):
            return  # the guest stopped
        guest = guest_with_devices(live.xml, begun.devices)
        try:
            results = binder.bind(connection, guest, unchanged.selector, unchanged.devices, new)
        except VmmMsiError:
            self._write(connection, live, unchanged)
            raise
        bound = replace(unchanged, devices=(*unchanged.devices, *results))
        self._remember(live, bound)
        self._statistics.changed(binds=sum(d.outcome is not Outcome.REFUSED for d in results))
        for device in results:
            delivered = device.outcome is Outcome.DELIVERED
            log_event(
                LogEvent.BOUND if delivered else LogEvent.NOT_DELIVERED,
                logging.INFO if delivered else logging.WARNING,
                uri=self._uri,
                domain=live.xml.name,
                device=device.host,
                strategy=device.strategy,
                by=device.by,
                programmed=",".join(map(str, device.programmed)) or None,
                outcome=device.outcome,
            )
        if not self._write(connection, live, bound):
            self._forget(connection, binder, live.uuid, self.watched[live.uuid])

    def _forget(
        self, connection: Connection, binder: SimBinder, uuid: str, watched: WatchedGuest
    ) -> None:
        """Unbind every device of a run that is over; libvirt dropped its live metadata."""
        self._unbind(connection, binder, watched, (), watched.bound.devices)
        self._follower.forget(uuid)
        del self.watched[uuid]
        self._statistics.guest(uuid, None)

    def _unbind(
        self,
        connection: Connection,
        binder: SimBinder,
        watched: WatchedGuest,
        kept: Sequence[BoundDevice],
        gone: Sequence[BoundDevice],
    ) -> None:
        """Unbind ``gone``; log a failure of a strategy and count its device as unbound."""
        gone = [device for device in gone if device.outcome is not Outcome.REFUSED]
        if not gone:
            return
        selector = watched.bound.selector
        try:
            binder.unbind(connection, watched.guest, selector, kept, gone)
        except HypervisorError:
            raise
        except VmmMsiError as error:
            self._failed(error, domain=watched.name)
        self._statistics.changed(unbinds=len(gone))
        for device in gone:
            log_event(LogEvent.UNBOUND, uri=self._uri, domain=watched.name, device=device.host)

    def _remember(self, live: _LiveGuest, bound: BoundGuest) -> None:
        """Update the guests with bound devices and their statistics."""
        if not bound.devices:
            self.watched.pop(live.uuid, None)
            self._statistics.guest(live.uuid, None)
            return
        guest = guest_with_devices(live.xml, bound.devices)
        self.watched[live.uuid] = WatchedGuest(live.xml.name, guest, bound, live.xml)
        outcomes = Counter(str(device.outcome) for device in bound.devices)
        self._statistics.guest(live.uuid, outcomes)

    @staticmethod
    def _write(connection: Connection, live: _LiveGuest, bound: BoundGuest) -> bool:
        """Write the bound devices into the live metadata; return False if the guest stopped."""
        xml = bound_xml(bound) if bound.devices else None
        return connection.set_live_metadata(live.uuid, NAMESPACE, PREFIX, xml)

    def _failed(
        self, error: VmmMsiError, uuid: str | None = None, domain: str | None = None
    ) -> None:
        self.failure = self.failure or error
        self._statistics.failure("guest")
        log_event(
            LogEvent.FAILED, logging.ERROR, uri=self._uri, uuid=uuid, domain=domain, error=error
        )


def _by_kernel(watched: WatchedGuest) -> bool:
    """Return whether the kernel binds a device of a guest."""
    return any(device.by == BinderKind.KERNEL for device in watched.bound.devices)


def _is_refused_in_kernel(device: BoundDevice) -> bool:
    return device.by == BinderKind.KERNEL and device.outcome is Outcome.REFUSED
