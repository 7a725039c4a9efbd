"""What a guest that runs should have bound, and binding it on the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi import topology
from vmm_msi.config import Choice
from vmm_msi.domxml.bound import Bound, BoundDevice
from vmm_msi.domxml.guest import guest_from_xml
from vmm_msi.domxml.metadata import read_record
from vmm_msi.errors import NoHostDeviceError, RefusedError, VmmMsiError
from vmm_msi.iommu.profiles import newest_profile, profile_named
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.model import Outcome
from vmm_msi.run import GuestRun

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from vmm_msi.config import Config
    from vmm_msi.domxml.domain import DomainXml
    from vmm_msi.host import PluginHost
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.model import GuestDomain, HostTopology, PciAddress


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

    plugins: PluginHost
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
    def _take_down(run: GuestRun, devices: Iterable[BoundDevice]) -> None:
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
    ) -> GuestRun:
        """Return the guest's run with these devices, in this order.

        :param known: what was refused before is left out: it is not up.
        """
        known = [device for device in known if device.outcome is not Outcome.REFUSED]
        choices = {device.host: Choice.parse(device.strategy) for device in (*known, *new)}
        guest = replace(guest, devices=tuple(guest.device_by_address[host] for host in choices))
        host = _with_groups(connection, self.host, choices)
        return GuestRun(
            self.plugins,
            host,
            guest,
            SimBackend(host, guest, self._profile(choices.values())),
            choices,
            selector,
            known=[device.host for device in known],
        )

    def _profile(self, choices: Iterable[Choice]) -> Profile:
        """Return the kernel that all strategies of a guest run on.

        :raise RefusedError: when there is none.
        """
        choices = set(choices)
        named = {choice.profile for choice in choices if choice.profile is not None}
        if len(named) == 1:
            return profile_named(named.pop())
        features = set()
        for choice in choices:
            options = self.plugins.options(choice.strategy, choice.options)
            needs = self.plugins.needs(choice.strategy, options)
            features |= {needs.interface, *needs.capabilities}
        profile = None if named else newest_profile(features)
        if profile is None:
            raise RefusedError(
                f"strategies {', '.join(sorted(map(str, choices)))}: no modelled kernel can carry "
                "all of them out at once; attach the devices with one strategy"
            )
        return profile


def guest_of(xml: DomainXml, devices: Iterable[BoundDevice]) -> GuestDomain:
    """Return the guest with its own devices and ``devices``, which may be gone from it."""
    return guest_from_xml(xml, also=[device.host for device in devices])


def _with_groups(
    connection: Connection, host: HostTopology, devices: Collection[PciAddress]
) -> HostTopology:
    """List the devices in the topology, with libvirt's IOMMU groups where it knows them."""
    groups = {device.address: device.iommu_group for device in host.devices}
    host = topology.with_devices(host, list(devices))
    unknown = []
    for device in devices:
        try:
            group = connection.node_device(device).iommu_group
        except NoHostDeviceError:
            group = None
        if group is not None:
            groups.setdefault(device, group)
        else:
            unknown.append(device)
    own = max(groups.values(), default=0)
    for number, device in enumerate(unknown, 1):
        groups.setdefault(device, own + number)
    placed = tuple(replace(device, iommu_group=groups[device.address]) for device in host.devices)
    return replace(host, devices=placed)
