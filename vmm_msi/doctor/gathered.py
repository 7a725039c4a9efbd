"""A case of a host by itself: what its files or descriptions tell, and no guest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING

from vmm_msi.doctor.case import Case, Disagreement, Kernel, Software
from vmm_msi.doctor.devices import assignable, stand_ins, with_ways
from vmm_msi.doctor.finding import Evidence
from vmm_msi.doctor.looking import named
from vmm_msi.errors import UsageError
from vmm_msi.topology.crosscheck import disagreements
from vmm_msi.topology.join import join

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_msi.config import Choice
    from vmm_msi.hosttree import HostTree
    from vmm_msi.model import HostTopology, PciAddress


@dataclass(frozen=True, slots=True)
class HostSources:
    """What there is of a host.

    :param name: what it is called.
    :param sources: what each source says of it, the most believed first.
    :param tree: its files; None where there are only descriptions.
    """

    name: str
    sources: tuple[HostTopology, ...]
    tree: HostTree | None = None


def case_of_host(
    there_is: HostSources, wanted: Sequence[PciAddress] = (), choice: Choice | None = None
) -> Case:
    """Return what is to be looked at.

    :param wanted: devices that are meant; none for all that could be assigned, and where nothing
        lists devices, one for each SMMU and ITS group of a PCI segment.
    :raise UsageError: when the host has no such device.
    :raise InputError: when a file of it has not what belongs there.
    """
    host = join(there_is.sources, there_is.name)
    devices = tuple(wanted) or assignable(host) or stand_ins(host)
    host = with_ways(host, devices)
    _check(host, wanted)
    kernel, software = Kernel(), Software()
    unreadable: list[Evidence] = []
    if there_is.tree is not None:
        facts = import_module("vmm_msi.doctor.facts")
        kernel = facts.read_kernel(there_is.tree, host, unreadable)
        software = facts.read_software(there_is.tree, unreadable)
    return Case(
        host=host,
        tree=there_is.tree,
        kernel=kernel,
        software=software,
        devices=devices,
        choice=choice,
        disagreements=tuple(
            Disagreement(one.subject, tuple(Evidence(*said) for said in one.statements))
            for one in disagreements(there_is.sources)
        ),
        unreadable=tuple(unreadable),
    )


def of_guest(case: Case, there_is: HostSources) -> Case:
    """Return the case of a guest with what only the host's own sources tell."""
    own = case_of_host(there_is, case.devices)
    return replace(case, disagreements=own.disagreements, unreadable=own.unreadable)


def _check(host: HostTopology, wanted: Sequence[PciAddress]) -> None:
    known = {*host.device_by_address, *host.function_by_address}
    missing = [address for address in wanted if address not in known]
    if missing:
        raise UsageError(
            f"looking at {named(missing)}: {host.source} has no such device; it has "
            f"{named(sorted(known)) or 'none'}"
        )
