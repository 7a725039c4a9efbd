"""The same edit of a definition that comes from a file, without any libvirt.

What libvirt would say of itself is given, of the host's devices and of other guests nothing is
known.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.domxml import elements
from vmm_msi.domxml.guest_state import GuestState
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.support import REQUIREMENTS, Support
from vmm_msi.errors import DomainXmlError
from vmm_msi.provision import planner
from vmm_msi.provision.libvirt_facts import LibvirtFacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lxml.etree import _Element as Element

    from vmm_msi.config import Config
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.provision.request import AttachRequest, Change
    from vmm_msi.types import HostTopology, PciAddress

# Where one document ends and another begins.
_NEXT = re.compile(rb"</domain\s*>\s*(?:<\?xml[^>]*>\s*)?<domain[\s>]")


def newest() -> Support:
    """Return the releases that have all that is in the table of support."""
    libvirt = max(needs.libvirt for needs in REQUIREMENTS.values())
    return Support(libvirt, max(needs.qemu for needs in REQUIREMENTS.values() if needs.qemu))


def read(data: bytes, source: str) -> DomainXml:
    """Read one domain XML document.

    :raise DomainXmlError: see :func:`vmm_msi.domxml.parse.parse`; also for the two documents that
        ``virt-install --print-xml`` prints for a guest that is installed first.
    """
    try:
        return DomainXml.parse(data, source)
    except DomainXmlError:
        number = len(_NEXT.findall(data)) + 1
        if number < 2:
            raise
        raise DomainXmlError(
            f"reading domain XML from {source}: there are {number} domains; valid is one: "
            "virt-install --print-xml 2 prints the guest as it is after the installation, 1 as "
            "it is during that, and --import has no installation"
        ) from None


def plan_attach(
    definition: DomainXml,
    support: Support,
    plugins: PluginManager,
    settings: Config,
    host: HostTopology,
    request: AttachRequest,
    *,
    take_over: bool = False,
) -> Change:
    """Plan to attach devices to a guest that no libvirt knows yet.

    :param support: the libvirt and the QEMU that will be given the new XML.
    :param take_over: a device that the definition assigns already is put behind its vSMMU.
    :raise RefusedError: when the strategy, the model, those releases or the guest cannot do it.
    :raise TopologyError: when the host description lacks a device.
    """
    start, notes = _with_gic(definition)
    theirs: dict[PciAddress, Element] = {}
    if take_over:
        start, theirs = _without(start, request.devices)
    facts = LibvirtFacts(
        driver=None,
        support=replace(support, guest=start.kind),
        guest=GuestState(start),
        holders=[(hostdev.host, start.name) for hostdev in start.hostdevs()],
    )
    change = planner.plan_attach(facts, plugins, settings, host, request)
    new = _with(change.new, theirs)
    return replace(change, old=definition, new=new, notes=(*notes, *change.notes))


def _with_gic(definition: DomainXml) -> tuple[DomainXml, list[str]]:
    """Return the definition with the GIC that an ITS needs, where it says nothing of one.

    libvirt fills in a version when a guest is defined: with KVM the newest of the host, emulated
    the 2 (``src/qemu/qemu_domain.c`` qemuDomainDefEnableDefaultFeatures).
    """
    edited = definition.copy()
    features = edited.root.find("features")
    if features is None or edited.gic_version is not None or edited.arch != "aarch64":
        return definition, []
    gic = features.find("gic")
    if gic is None:
        last = features[-1] if len(features) else None
        elements.insert_after(features, last, elements.build("gic", {"version": "3"}))
    else:
        gic.set("version", "3")
    return edited, ["it says no GIC version; <gic version='3'/> was put in and stays in"]


def _without(
    definition: DomainXml, devices: Iterable[PciAddress]
) -> tuple[DomainXml, dict[PciAddress, Element]]:
    """Return the definition without what assigns ``devices``, and what did."""
    wanted = set(devices)
    theirs: dict[PciAddress, Element] = {}
    edited = definition.copy()
    for hostdev in edited.hostdevs():
        if hostdev.host in wanted and hostdev.host not in theirs:
            theirs[hostdev.host] = copy.deepcopy(hostdev.element)
            elements.remove(hostdev.element)
    return edited, theirs


def _with(new: DomainXml, theirs: Mapping[PciAddress, Element]) -> DomainXml:
    """Return the definition with ``theirs`` in the place of our own, plugged in where that is."""
    if not theirs:
        return new
    edited = new.copy()
    for hostdev in edited.hostdevs():
        element = theirs.get(hostdev.host)
        if element is None:
            continue
        elements.insert_after(edited.devices, hostdev.element, element)
        elements.remove(hostdev.element)
        for address in element.findall("address"):
            elements.remove(address)
        for child in hostdev.element.iterchildren("driver", "address"):
            own = element.find(str(child.tag))
            if own is None:
                elements.insert_after(element, element[-1], copy.deepcopy(child))
            else:
                own.attrib.update(child.attrib)
    return edited
