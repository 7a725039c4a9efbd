"""What a guest that runs should have bound, and binding it on the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.config import Choice
from vmm_msi.domxml.bound_metadata import Bound, BoundDevice
from vmm_msi.domxml.guest_domain import guest_from_xml
from vmm_msi.domxml.metadata import read_record
from vmm_msi.engine.session import GuestSession
from vmm_msi.engine.setup import profile_for, with_groups
from vmm_msi.errors import VmmMsiError
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.provision.checks import needs_of
from vmm_msi.provision.libvirt_facts import known_nodes
from vmm_msi.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_msi.config import Config
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import GuestDomain, HostTopology


def wanted(xml: DomainXml, run: int, selector: str) -> Bound:
    """Return what should be bound for a guest: the recorded devices that it really has.

    :param xml: its live XML.
    :return: the devices, none with an outcome.
    :raise DomainXmlError: when the record cannot be read.
    """
    record = read_record(xml)
    if record is None:
        return Bound(run, selector, ())
    present = {hostdev.host for hostdev in xml.hostdevs()}
    devices = tuple(
        BoundDevice(
            device.host, str(Choice.of(device.strategy, dict(device.options))), device.backend
        )
        for device in record.devices
        if device.host in present
    )
    return Bound(run, selector, devices)


@dataclass(frozen=True)
class Binder:
    """Binds on the model, as the strategies of the record do it.

    :param plugins: the strategies, and the observers that are told.
    :param settings: names the ITS selector of a guest.
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
        """Bring up ``new`` behind what is up already.

        A device that is refused has that as its outcome; the others are brought up.

        :param guest: the guest with at least these devices.
        :return: ``new`` with what became of each.
        :raise VmmMsiError: when none can be brought up; observers were told of taking down what
            was.
        """
        run = self._run(connection, guest, selector, kept, new)
        try:
            verdicts = {verdict.device: verdict for verdict in run.try_all()}
        except VmmMsiError:
            self._take_down(run, new)
            raise
        return tuple(
            replace(
                device,
                programmed=verdicts[device.host].programmed,
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
        """Take ``gone`` down; what is kept stays up.

        :param guest: the guest with at least these devices.
        :raise VmmMsiError: the first failure, after everything was tried.
        """
        run = self._run(connection, guest, selector, (*kept, *gone), ())
        for _verdict in run.try_all():
            pass
        self._take_down(run, gone)

    @staticmethod
    def _take_down(run: GuestSession, devices: Iterable[BoundDevice]) -> None:
        failures = []
        for device in devices:
            try:
                run.take_down(device.host)
            except VmmMsiError as failure:
                failures.append(failure)
        run.end_unused()
        if failures:
            raise failures[0]

    def _run(
        self,
        connection: Connection,
        guest: GuestDomain,
        selector: str,
        known: Sequence[BoundDevice],
        new: Sequence[BoundDevice],
    ) -> GuestSession:
        """Return the guest's run with these devices, in this order.

        :param known: what was refused before is left out: it is not up.
        """
        known = [device for device in known if device.outcome is not Outcome.REFUSED]
        choices = {device.host: Choice.parse(device.strategy) for device in (*known, *new)}
        guest = replace(guest, devices=tuple(guest.device_by_address[host] for host in choices))
        host = with_groups(self.host, choices, known_nodes(connection, choices))
        needs = {choice: needs_of(self.plugins, choice) for choice in choices.values()}
        return GuestSession(
            self.plugins,
            host,
            guest,
            SimBackend(host, guest, profile_for(needs)),
            choices,
            selector,
            known=[device.host for device in known],
        )


def guest_of(xml: DomainXml, devices: Iterable[BoundDevice]) -> GuestDomain:
    """Return the guest with its own devices and ``devices``, which may be gone from it."""
    return guest_from_xml(xml, also=[device.host for device in devices])
