"""Plan to attach devices to a definition in a file, without libvirt.

The caller names the releases of libvirt and QEMU; nothing is known of the host's devices as libvirt
sees them, nor of other guests.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.doctor.case import Case, Guest
from vmm_msi.doctor.case_reader import host_case
from vmm_msi.doctor.refusal import errors, refusal
from vmm_msi.doctor.rules_values import libvirt_refuses
from vmm_msi.domxml import elements, gic
from vmm_msi.domxml.guest_state import GuestState
from vmm_msi.domxml.metadata import read_record, record_in, write_record
from vmm_msi.domxml.placement import Placement, is_accelerated
from vmm_msi.errors import DomainXmlError, RefusedError
from vmm_msi.provision import planner
from vmm_msi.provision.libvirt_facts import LibvirtFacts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from lxml.etree import _Element as Element

    from vmm_msi.config import Config
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.support import Support
    from vmm_msi.host.sources import HostSources
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.provision.request import AttachRequest, Change
    from vmm_msi.types import HostTopology, PciAddress


_GIC_NOTE = (
    "the definition had no GIC version; <gic version='3'/> was added, and is removed with the last "
    "device"
)


def plan_attach(
    definition: DomainXml,
    support: Support,
    plugins: PluginManager,
    settings: Config,
    host: HostTopology | HostSources,
    request: AttachRequest,
    *,
    take_over: bool = False,
) -> Change:
    """Plan to attach devices to a guest that is not defined yet.

    :param support: the libvirt and the QEMU that will use the new XML.
    :param take_over: move devices that the definition already assigns behind their vSMMU.
    :raise FindingsError: if the doctor reports errors, such as values that libvirt rejects.
    :raise RefusedError: if the strategy, the simulator, those releases or the guest cannot do it.
    :raise TopologyError: if the host description lacks a device.
    """
    try:
        return _plan(definition, support, plugins, settings, host, request, take_over=take_over)
    except DomainXmlError as failure:
        case = Case(host_case(host).host, guest=Guest.of_author(definition))
        causes = errors(libvirt_refuses(case))
        if not causes:
            raise
        devices = ", ".join(map(str, request.devices))
        action = f"attaching {devices} to {definition.name}"
        raise refusal(action, causes, can_override=False) from failure


def _plan(
    definition: DomainXml,
    support: Support,
    plugins: PluginManager,
    settings: Config,
    host: HostTopology | HostSources,
    request: AttachRequest,
    *,
    take_over: bool,
) -> Change:
    start, added = gic.with_version(definition)
    written: dict[PciAddress, Element] = {}
    if take_over:
        start, written = _without(start, request.devices)
    facts = LibvirtFacts(
        driver=None,
        support=replace(support, guest=start.kind),
        guest=GuestState(start),
        holders=[(hostdev.host, start.name) for hostdev in start.assigned()],
        source="the selected releases",
    )
    finish = partial(_finished, written=written, added=added)
    change = planner.plan_attach(facts, plugins, settings, host, request, finish)
    notes = [_GIC_NOTE] if added else []
    return replace(change, old=definition, notes=(*notes, *change.notes))


def _finished(new: DomainXml, written: Mapping[PciAddress, Element], added: str) -> DomainXml:
    """Return ``new`` with the user's elements in it, and with what was added in its record.

    :param added: see :func:`vmm_msi.domxml.gic.with_version`.
    """
    edited = _with(new, written)
    record = read_record(edited)
    if not added or record is None:
        return edited
    edited = edited.copy()
    record = replace(
        record,
        gic_added=record.gic_added or added == "gic",
        gic_version_added=record.gic_version_added or added == "gic-version",
    )
    write_record(edited, record)
    return edited


def _without(
    definition: DomainXml, devices: Iterable[PciAddress]
) -> tuple[DomainXml, dict[PciAddress, Element]]:
    """Return the definition without the elements that assign ``devices``, and these elements."""
    record = record_in(definition)
    removed = {device for device in devices if record.device(device) is None}
    _check_placement(definition, removed)
    written: dict[PciAddress, Element] = {}
    edited = definition.copy()
    for hostdev in edited.hostdevs():
        if hostdev.host in removed and hostdev.host not in written:
            written[hostdev.host] = copy.deepcopy(hostdev.element)
            elements.remove(hostdev.element)
    return edited, written


def _check_placement(definition: DomainXml, devices: Collection[PciAddress]) -> None:
    """Refuse to move devices from one accelerated vSMMU to another.

    QEMU exits if a vSMMU is left empty, and each physical SMMU needs one vSMMU only.

    :raise RefusedError: if one of the devices is behind an accelerated vSMMU.
    """
    placement = Placement(definition)
    for iommu in filter(is_accelerated, placement.vsmmus):
        for hostdev in placement.behind(iommu):
            if hostdev.host in devices:
                raise RefusedError(
                    f"taking {hostdev.host} of {definition.name} over: it is behind the vSMMU of "
                    f"controller {iommu.pci_bus} already; keep it there, or remove its <hostdev> "
                    "and that vSMMU, and attach it again"
                )


def _with(new: DomainXml, written: Mapping[PciAddress, Element]) -> DomainXml:
    """Return ``new`` with the user's elements in the place of the new ones, at their addresses."""
    if not written:
        return new
    edited = new.copy()
    for hostdev in edited.hostdevs():
        element = written.get(hostdev.host)
        if element is None:
            continue
        elements.insert_after(edited.devices, hostdev.element, element)
        elements.remove(hostdev.element)
        for address in element.findall("address"):
            elements.remove(address)
        for child in hostdev.element.iterchildren("driver", "alias", "address"):
            own = element.find(str(child.tag))
            if own is None:
                elements.insert_after(element, element[-1], copy.deepcopy(child))
            else:
                own.attrib.update(child.attrib)
    return edited
