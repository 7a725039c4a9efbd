"""A case of a host by itself: what its files or descriptions tell, and no guest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.doctor.case import Case
from vmm_msi.doctor.devices import assignable, representatives, with_routed
from vmm_msi.host.crosscheck import disagreements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_msi.doctor.finding import Evidence
    from vmm_msi.host.sources import HostSources
    from vmm_msi.types import PciAddress


def case_of_host(there_is: HostSources, wanted: Sequence[PciAddress] = ()) -> Case:
    """Return what is to be looked at.

    :param wanted: devices that are meant; none for all that could be assigned, and where nothing
        lists devices, one for each SMMU and ITS group of a PCI segment.
    :raise InputError: when a file of it has not what belongs there.
    """
    host = there_is.joined()
    devices = tuple(wanted) or assignable(host) or representatives(host)
    case = Case(host=with_routed(host, devices), devices=devices, devices_selected=bool(wanted))
    return _with_facts(case, there_is)


def with_host_facts(case: Case, there_is: HostSources) -> Case:
    """Add to the case of a guest what the host's own sources tell.

    What its libvirt told of itself stays.

    :raise InputError: when a file of the host has not what belongs there.
    """
    return _with_facts(replace(case, host=with_routed(case.host, case.devices)), there_is)


def _with_facts(case: Case, there_is: HostSources) -> Case:
    kernel, software = case.kernel, case.software
    unreadable: list[Evidence] = []
    if there_is.tree is not None:
        from vmm_msi.doctor.facts import read_kernel, read_software

        kernel = read_kernel(there_is.tree, case.host, unreadable)
        told = read_software(there_is.tree, unreadable)
        limit = told.daemon_locked_memory
        asked = software.libvirt is not None
        software = replace(software, daemon_locked_memory=limit) if asked else told
    return replace(
        case,
        tree=there_is.tree,
        kernel=kernel,
        software=software,
        disagreements=tuple(disagreements(there_is.sources)),
        unreadable=tuple(unreadable),
    )
