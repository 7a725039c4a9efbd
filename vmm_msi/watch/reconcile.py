"""Bring the guests of one connection to where their records say they should be.

Safe to kill at any point: what is begun is written into the guest's live metadata before it is
done, and what was done after it. Whoever comes next reads that and goes on from there:

* a device with an outcome is bound; it is left alone;
* a device without one was begun; it is unbound and bound again;
* what the record does not ask for is unbound.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.domxml.bound_metadata import NAMESPACE, PREFIX, Bound, bound_xml, read_bound
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.errors import DomainXmlError, HypervisorError, VmmMsiError
from vmm_msi.types import Outcome
from vmm_msi.watch.binder import guest_of, wanted
from vmm_msi.watch.service_log import LogEvent, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from vmm_msi.domxml.bound_metadata import BoundDevice
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.types import GuestDomain
    from vmm_msi.watch.binder import Binder
    from vmm_msi.watch.statistics import Statistics

# What both of our elements have in their namespace: a guest without it is none of our business.
_OURS = "https://vmm-msi.org/xmlns/libvirt/"


@dataclass(frozen=True)
class Entry:
    """What this process knows of a guest that runs.

    :param guest: with all devices of ``bound``.
    """

    name: str
    guest: GuestDomain
    bound: Bound


@dataclass(frozen=True)
class _State:
    """A guest that runs, as its live XML has it.

    :param found: the element that is there, whatever run it is of.
    """

    uuid: str
    xml: DomainXml
    run: int
    found: Bound | None


class Guests:
    """The guests of one connection; for one thread.

    :param beat: called before each guest, as a sign of life.
    """

    def __init__(
        self, uri: str, statistics: Statistics, beat: Callable[[], None] = lambda: None
    ) -> None:
        self.entries: dict[str, Entry] = {}
        #: The first error of the last reconcile.
        self.failure: VmmMsiError | None = None
        self._uri = uri
        self._statistics = statistics
        self._beat = beat

    def reconcile(
        self, connection: Connection, binder: Binder, rebooted: Collection[str] = ()
    ) -> list[str]:
        """Look at every guest that runs, and at those that ran.

        :param rebooted: the UUIDs of those that are known to have been reset.
        :return: the UUIDs of guests to look at again: libvirt refused something.
        :raise HypervisorError: when the connection is lost.
        """
        start = time.monotonic()
        self.failure = None
        running = connection.running()
        gone = self.entries.keys() - set(running)
        again = [
            uuid
            for uuid in (*sorted(gone), *running)
            if not self.look(connection, binder, uuid, rebooted=uuid in rebooted)
        ]
        seconds = time.monotonic() - start
        self._statistics.reconciled(seconds)
        tell(
            LogEvent.RECONCILED,
            uri=self._uri,
            running=len(running),
            watched=len(self.entries),
            seconds=round(seconds, 3),
        )
        return again

    def look(
        self, connection: Connection, binder: Binder, uuid: str, *, rebooted: bool = False
    ) -> bool:
        """Bring one guest to where it should be; a failure is logged.

        :param rebooted: it was reset since it was last looked at, so nothing is bound any more.
        :return: whether that is all; False when it may work later.
        :raise HypervisorError: when the connection is lost.
        """
        self._beat()
        try:
            self._bring(connection, binder, uuid, rebooted=rebooted)
        except VmmMsiError as error:
            if isinstance(error, HypervisorError) and not connection.is_alive():
                raise
            self._failed(error, uuid=uuid)
            return not isinstance(error, HypervisorError)
        return True

    def _bring(self, connection: Connection, binder: Binder, uuid: str, *, rebooted: bool) -> None:
        text = connection.live_text(uuid)
        entry = self.entries.get(uuid)
        if text is None or _OURS not in text:
            if entry is not None:
                self._end(connection, binder, uuid, entry)
            return
        state = self._read(uuid, text)
        if entry is not None and entry.bound.run != state.run:
            self._end(connection, binder, uuid, entry)
            entry = None
        found = state.found if state.found is not None and state.found.run == state.run else None
        # This process knows best what it did: what it wrote last may not have arrived.
        before = entry.bound if entry is not None else found
        selector = binder.settings.its_selector(state.xml.name)
        target = wanted(state.xml, state.run, selector)
        kept: tuple[BoundDevice, ...] = ()
        if before is not None and before.selector == selector and not rebooted:
            kept = tuple(
                device
                for device in before.devices
                if device.outcome is not None and any(map(device.is_same, target.devices))
            )
        stay = replace(target, devices=kept)
        gone = tuple(d for d in before.devices if d not in kept) if before is not None else ()
        new = tuple(d for d in target.devices if not any(map(d.is_same, kept)))
        if rebooted and gone:
            tell(LogEvent.GUEST_REBOOTED, uri=self._uri, domain=state.xml.name)
        if before is not None and gone:
            guest = guest_of(state.xml, before.devices)
            old = Entry(state.xml.name, guest, before)
            self._unbind(connection, binder, old, kept, gone)
        self._keep(state, stay)
        if new:
            self._bind(connection, binder, state, stay, new)
        elif state.found != (stay if kept else None):
            self._write(connection, state, stay)

    def _read(self, uuid: str, text: str) -> _State:
        xml = DomainXml.parse(text, f"guest {uuid} at {self._uri}")
        run = xml.root.get("id", "")
        if not (run.isascii() and run.isdigit()):
            raise DomainXmlError(
                f"reading guest {xml.name} at {self._uri}: its id is {run!r}; libvirt gives a "
                "guest that runs a number"
            )
        return _State(uuid, xml, int(run), read_bound(xml))

    def _bind(
        self,
        connection: Connection,
        binder: Binder,
        state: _State,
        stay: Bound,
        new: Sequence[BoundDevice],
    ) -> None:
        """Bind ``new`` behind what stays, with a note of it before."""
        begun = replace(stay, devices=(*stay.devices, *new))
        if not self._write(connection, state, begun):
            return  # it stopped: there is nothing to bind
        guest = guest_of(state.xml, begun.devices)
        try:
            done = binder.bind(connection, guest, stay.selector, stay.devices, new)
        except VmmMsiError:
            self._write(connection, state, stay)
            raise
        bound = replace(stay, devices=(*stay.devices, *done))
        self._keep(state, bound)
        self._statistics.changed(binds=sum(d.outcome is not Outcome.REFUSED for d in done))
        for device in done:
            delivered = device.outcome is Outcome.DELIVERED
            tell(
                LogEvent.BOUND if delivered else LogEvent.NOT_DELIVERED,
                logging.INFO if delivered else logging.WARNING,
                uri=self._uri,
                domain=state.xml.name,
                device=device.host,
                strategy=device.strategy,
                by=device.by,
                programmed=device.programmed,
                outcome=device.outcome,
            )
        if not self._write(connection, state, bound):
            self._end(connection, binder, state.uuid, self.entries[state.uuid])

    def _end(self, connection: Connection, binder: Binder, uuid: str, entry: Entry) -> None:
        """Unbind all of a run that is over; its metadata went with it."""
        self._unbind(connection, binder, entry, (), entry.bound.devices)
        del self.entries[uuid]
        self._statistics.guest(uuid, None)

    def _unbind(
        self,
        connection: Connection,
        binder: Binder,
        entry: Entry,
        kept: Sequence[BoundDevice],
        gone: Sequence[BoundDevice],
    ) -> None:
        """Unbind what was up; what a strategy cannot undo is logged, and counts as gone."""
        gone = [device for device in gone if device.outcome is not Outcome.REFUSED]
        if not gone:
            return
        selector = entry.bound.selector
        try:
            binder.unbind(connection, entry.guest, selector, kept, gone)
        except HypervisorError:
            raise
        except VmmMsiError as error:
            self._failed(error, domain=entry.name)
        self._statistics.changed(unbinds=len(gone))
        for device in gone:
            tell(LogEvent.UNBOUND, uri=self._uri, domain=entry.name, device=device.host)

    def _keep(self, state: _State, bound: Bound) -> None:
        """Remember what is bound."""
        if not bound.devices:
            self.entries.pop(state.uuid, None)
            self._statistics.guest(state.uuid, None)
            return
        guest = guest_of(state.xml, bound.devices)
        self.entries[state.uuid] = Entry(state.xml.name, guest, bound)
        outcomes = Counter(str(device.outcome) for device in bound.devices)
        self._statistics.guest(state.uuid, outcomes)

    @staticmethod
    def _write(connection: Connection, state: _State, bound: Bound) -> bool:
        xml = bound_xml(bound) if bound.devices else None
        return connection.set_live_metadata(state.uuid, NAMESPACE, PREFIX, xml)

    def _failed(
        self, error: VmmMsiError, uuid: str | None = None, domain: str | None = None
    ) -> None:
        self.failure = self.failure or error
        self._statistics.failure("guest")
        tell(LogEvent.FAILED, logging.ERROR, uri=self._uri, uuid=uuid, domain=domain, error=error)
