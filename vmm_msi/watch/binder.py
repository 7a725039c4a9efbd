"""Determine which devices of a running guest should be bound, and bind them in the simulator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.config import Choice
from vmm_msi.domxml.bound_metadata import BoundDevice, BoundGuest
from vmm_msi.domxml.guest_domain import guest_from_xml
from vmm_msi.domxml.metadata import read_record
from vmm_msi.engine.binders import kernel_allocator
from vmm_msi.engine.setup import (
    needs_of,
    recorded_choices,
    simulated_session,
    with_reported_devices,
)
from vmm_msi.errors import VmmMsiError
from vmm_msi.libvirt_driver.node_devices import known_nodes
from vmm_msi.types import BinderKind, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_msi.config import Config
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.engine.session import GuestSession
    from vmm_msi.host.msi_bindings import BindingAllocator
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import GuestDomain, HostTopology, PciAddress


def desired_bindings(xml: DomainXml, run: int, selector: str) -> BoundGuest:
    """Return the devices to bind: those in the record that the guest has as ``<hostdev>``.

    :param xml: the live XML of the guest.
    :param run: libvirt's id of this run of the guest.
    :param selector: name of the ITS selector.
    :return: the devices, without outcomes.
    :raise DomainXmlError: when the record cannot be read.
    """
    record = read_record(xml)
    if record is None:
        return BoundGuest(run, selector, ())
    present = {hostdev.host for hostdev in xml.hostdevs()}
    choices = recorded_choices(record)
    devices = tuple(
        BoundDevice(device.host, str(choices[device.host]), device.backend)
        for device in record.devices
        if device.host in present
    )
    return BoundGuest(run, selector, devices)


def allocators_of(
    plugins: PluginManager, devices: Iterable[BoundDevice]
) -> dict[PciAddress, BindingAllocator]:
    """Return the devices that the kernel binds, with the allocator of each.

    :raise UsageError: for an unknown strategy or option.
    """
    allocators = {}
    for device in devices:
        if device.by == BinderKind.KERNEL:
            choice = Choice.parse(device.strategy)
            allocator = kernel_allocator(choice, needs_of(plugins, choice))
            if allocator is not None:
                allocators[device.host] = allocator
    return allocators


@dataclass(frozen=True)
class SimBinder:
    """Bind devices in the simulator with the strategies of their records.

    :param plugins: the strategies, and the observers to notify.
    :param settings: name the ITS selector of a guest.
    :param host: the host that the guests run on.
    """

    plugins: PluginManager
    settings: Config
    host: HostTopology

    def bind(
        self,
        connection: Connection,
        guest: GuestDomain,
        selector: str,
        kept: Sequence[BoundDevice],
        new: Sequence[BoundDevice],
    ) -> tuple[BoundDevice, ...]:
        """Bind ``new``, in addition to the devices that are bound already.

        A refused device gets the outcome ``refused``; the remaining devices are still bound.

        :param guest: the guest with at least these devices.
        :param kept: the devices that are bound already.
        :return: ``new`` with the programmed address and the outcome of each device.
        :raise VmmMsiError: when no device can be bound; observers were notified of every step
            that was undone.
        """
        session = self._session(connection, guest, selector, kept, new)
        try:
            verdicts = {verdict.device: verdict for verdict in session.attach_and_deliver()}
        except VmmMsiError:
            self._take_down(session, new)
            raise
        return tuple(
            replace(
                device,
                programmed=verdicts[device.host].possible,
                outcome=verdicts[device.host].outcome,
            )
            for device in new
        )

    def unbind(
        self,
        connection: Connection,
        guest: GuestDomain,
        selector: str,
        kept: Sequence[BoundDevice],
        gone: Sequence[BoundDevice],
    ) -> None:
        """Unbind ``gone`` and leave ``kept`` bound.

        :param guest: the guest with at least these devices.
        :raise VmmMsiError: the first failure, after every device was tried.
        """
        session = self._session(connection, guest, selector, (*kept, *gone), ())
        for _verdict in session.attach_and_deliver():
            pass
        self._take_down(session, gone)

    @staticmethod
    def _take_down(session: GuestSession, devices: Iterable[BoundDevice]) -> None:
        failures = []
        for device in devices:
            try:
                session.detach(device.host)
            except VmmMsiError as failure:
                failures.append(failure)
        session.detach_unused_strategies()
        if failures:
            raise failures[0]

    def _session(
        self,
        connection: Connection,
        guest: GuestDomain,
        selector: str,
        known: Sequence[BoundDevice],
        new: Sequence[BoundDevice],
    ) -> GuestSession:
        """Return a session of the guest with these devices, in this order.

        :param known: the devices that were tried already; refused ones are not bound and are
            skipped.
        """
        known = [device for device in known if device.outcome is not Outcome.REFUSED]
        choices = {device.host: Choice.parse(device.strategy) for device in (*known, *new)}
        guest = replace(guest, devices=tuple(guest.device_by_address[host] for host in choices))
        host = with_reported_devices(self.host, choices, known_nodes(connection, choices))
        return simulated_session(
            self.plugins,
            host,
            guest,
            choices,
            selector,
            attached_before=[device.host for device in known],
        )


def guest_with_devices(xml: DomainXml, devices: Iterable[BoundDevice]) -> GuestDomain:
    """Return the guest with its own devices and ``devices``, which it may no longer have."""
    return guest_from_xml(xml, also=[device.host for device in devices])
