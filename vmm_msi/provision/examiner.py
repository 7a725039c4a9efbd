"""Have the doctor's rules examine a guest that a request changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from vmm_msi.doctor.case import Case, Guest, Software
from vmm_msi.doctor.case_reader import with_nodes, with_unlisted
from vmm_msi.doctor.devices import with_routed
from vmm_msi.domxml.holdings import holdings
from vmm_msi.types import BinderKind, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.config import Choice, Config
    from vmm_msi.doctor.finding import Finding
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.metadata import DomainRecord
    from vmm_msi.engine.setup import Simulation
    from vmm_msi.errors import VmmMsiError
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.provision.libvirt_facts import LibvirtFacts
    from vmm_msi.provision.request import AttachRequest
    from vmm_msi.types import PciAddress


@dataclass(frozen=True)
class GuestExaminer:
    """Examines the guest of one request to attach, before and after the planned change.

    :param base: the host without the guest and without what libvirt reports.
    """

    base: Case
    facts: LibvirtFacts
    plugins: PluginManager
    settings: Config
    request: AttachRequest

    @cached_property
    def binder(self) -> BinderKind:
        """Which software binds the doorbells."""
        return self.request.binder_on(self.facts.driver)

    def check_holders(self) -> None:
        """Refuse devices that another guest of this libvirt has; --allow-faults does not help.

        A virtual function disappears with the host's driver of its physical function, so that two
        guests cannot have one each.

        :raise FindingsError: if another guest has one.
        """
        facts, devices = self.facts, self.request.devices
        name = facts.guest.definition.name
        if next(holdings(name, devices, facts.holders, facts.nodes), None) is None:
            return
        from vmm_msi.doctor.rules_assigned import held_by_domain

        self._refuse(held_by_domain(self._case(facts.guest.definition, devices)))

    def explain(self, old: DomainXml, failure: VmmMsiError) -> None:
        """Refuse with the doctor's errors for a guest for which planning failed, if it has any.

        :raise FindingsError: if the doctor reports errors for the devices; they are the causes.
        """
        from vmm_msi.doctor.refusal import errors

        devices = (*(hostdev.host for hostdev in old.assigned()), *self.request.devices)
        causes = errors(self._examine(self._case(old, devices, choice=self.request.strategy)))
        if causes:
            self._refuse(causes, cause=failure)

    def findings(
        self, new: DomainXml, simulation: Simulation, record: DomainRecord
    ) -> list[Finding]:
        """Return the doctor's findings about the planned guest.

        :param simulation: the guest in the simulator.
        :param record: what was attached before the change: a device that was attached although its
            MSIs are not delivered does not keep others from being attached.
        :raise FindingsError: if the doctor reports errors and the request does not allow them.
        """
        allowed = {
            device.host
            for device in record.devices
            if device.binding is not None
            and device.binding.outcome not in {None, Outcome.DELIVERED}
        }
        if allowed:
            verdicts = tuple(v for v in simulation.verdicts if v.device not in allowed)
            simulation = replace(simulation, verdicts=verdicts)
        return self._allowed(self._case(new, rehearsal=simulation))

    def findings_on_attached(self) -> list[Finding]:
        """Return the doctor's findings about a guest that has all devices of the request already.

        :raise FindingsError: if the doctor reports errors and the request does not allow them.
        """
        guest = self.facts.guest
        live = guest.running if self.request.scope.live else None
        xml = guest.definition if live is None or self.request.scope.config else live
        return self._allowed(self._case(xml))

    def _allowed(self, case: Case) -> list[Finding]:
        """Return the findings about a case; refuse errors unless the request allows them."""
        from vmm_msi.doctor.refusal import errors

        findings = self._examine(case)
        causes = errors(findings)
        if causes and not self.request.allow_faults:
            self._refuse(causes, can_override=True)
        return findings

    def _refuse(
        self,
        findings: Iterable[Finding],
        *,
        can_override: bool = False,
        cause: VmmMsiError | None = None,
    ) -> None:
        from vmm_msi.doctor.refusal import refusal

        devices = ", ".join(map(str, self.request.devices))
        action = f"attaching {devices} to {self.facts.guest.definition.name}"
        raise refusal(action, findings, can_override=can_override) from cause

    def _examine(self, case: Case) -> list[Finding]:
        from vmm_msi.doctor.rules import errors_and_warnings

        return errors_and_warnings(case)

    def _case(
        self,
        xml: DomainXml,
        devices: Iterable[PciAddress] | None = None,
        *,
        choice: Choice | None = None,
        rehearsal: Simulation | None = None,
    ) -> Case:
        """Return the case of a guest.

        :param devices: the devices to examine; None for those that the guest has.
        """
        facts = self.facts
        guest = Guest(xml, xml if facts.driver is None else None, facts.holders)
        if devices is None:
            devices = (hostdev.host for hostdev in guest.placement.hostdevs)
        selected = tuple(dict.fromkeys(devices))
        software = Software(
            facts.support.libvirt,
            facts.support.qemu,
            facts.driver,
            facts.support.caps,
            source=facts.source,
            daemon_locked_memory=self.base.software.daemon_locked_memory,
        )
        case = replace(
            self.base,
            host=with_nodes(with_routed(self.base.host, selected), facts.source, facts.nodes),
            software=software,
            guest=guest,
            devices=selected,
            choice=choice,
            binder=self.binder,
            rehearsal=rehearsal,
            plugins=self.plugins,
            config=self.settings,
        )
        unlisted = tuple(device for device in selected if device not in facts.nodes)
        return with_unlisted(case, unlisted) if facts.driver == "QEMU" else case
