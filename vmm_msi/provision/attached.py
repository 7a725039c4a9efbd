"""Find the devices of a request that are attached in the requested way already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml.metadata import record_in
from vmm_msi.engine.binders import binder_of_device
from vmm_msi.engine.setup import needs_of, recorded_choices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.config import Choice, Config
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.provision.libvirt_facts import LibvirtFacts
    from vmm_msi.provision.request import AttachRequest
    from vmm_msi.types import BinderKind, HostTopology, PciAddress


def attached_alike(
    facts: LibvirtFacts,
    plugins: PluginManager,
    settings: Config,
    host: HostTopology,
    request: AttachRequest,
) -> tuple[PciAddress, ...]:
    """Return the devices that every XML to be changed has as the request would attach them.

    With the same strategy and options, binder and ``managed``, behind a vSMMU with the requested
    properties and free ports.
    """
    requested = request.binder_on(facts.driver)
    documents = [facts.guest.definition] if request.scope.config else []
    if request.scope.live and facts.guest.running is not None:
        documents.append(facts.guest.running)
    alike = []
    for device in request.devices:
        choice = settings.choice(facts.guest.definition.name, device, request.strategy)
        binder = binder_of_device(requested, choice, needs_of(plugins, choice), host)
        if all(_is_alike(xml, device, choice, binder, plugins, request) for xml in documents):
            alike.append(device)
    return tuple(alike)


def _is_alike(
    xml: DomainXml,
    device: PciAddress,
    choice: Choice,
    binder: BinderKind,
    plugins: PluginManager,
    request: AttachRequest,
) -> bool:
    record = record_in(xml)
    recorded = record.device(device)
    if recorded is None or recorded.backend != binder.value:
        return False
    hostdev = next((hostdev for hostdev in xml.hostdevs() if hostdev.host == device), None)
    if hostdev is None:
        return False
    before = recorded_choices(record)[device]
    if (before.strategy, before.profile) != (choice.strategy, choice.profile):
        return False
    if plugins.options(before.strategy, before.options) != plugins.options(
        choice.strategy, choice.options
    ):
        return False
    vsmmu = next(vsmmu for vsmmu in record.vsmmus if vsmmu.pxb == recorded.pxb)
    return (
        hostdev.managed == request.managed
        and request.fdgroup in {None, xml.iommufd_fdgroup}
        and len(vsmmu.spare_ports) >= request.spare_ports
        and all(request.driver.items() <= driver.items() for driver in _drivers(xml, vsmmu.pxb))
    )


def _drivers(xml: DomainXml, pxb: int) -> Iterator[dict[str, str]]:
    """Yield the properties of the vSMMU on an expander bus, or of that of the machine."""
    for iommu in xml.iommus():
        if iommu.pci_bus in {None, str(pxb)}:
            yield dict(iommu.driver)
