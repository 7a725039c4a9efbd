"""Add vSMMUs and assigned devices to domain XML, and remove exactly what was added.

For each vSMMU of a plan: an expander bus, a root port per device on it, an ``<iommu>`` for that bus
and the ``<hostdev>`` elements, wired as https://libvirt.org/formatdomain.html#iommu-devices and
https://libvirt.org/pci-addresses.html describe. The metadata record every added element
(:mod:`vmm_msi.domxml.metadata`); no other element is ever removed.

The functions return a new :class:`DomainXml` and do not change their argument.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmm_msi.domxml import elements, gic, iommufd_objects
from vmm_msi.domxml.buses import GuestBuses
from vmm_msi.domxml.insertion import (
    add_controller,
    add_hostdev,
    add_iommu,
    add_root_port,
    check_iommus,
    remove_controller,
)
from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, ROOT_PORT
from vmm_msi.domxml.metadata import (
    BindingRecord,
    DeviceRecord,
    DomainRecord,
    VsmmuRecord,
    read_record,
    record_in,
    write_record,
)
from vmm_msi.domxml.reserve import forget, reserve
from vmm_msi.domxml.support import IommufdForm
from vmm_msi.errors import DomainXmlError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmm_msi.domxml.libvirt_domain import DomainXml, PciController
    from vmm_msi.domxml.support import XmlLayout
    from vmm_msi.types import GuestPlan, PciAddress, VsmmuPlan

# The elements that libvirt writes before <iommufd>
# (src/conf/domain_conf.c virDomainDefFormatInternalSetRootName).
_BEFORE_IOMMUFD = (
    "name", "uuid", "title", "description", "metadata", "maxMemory", "memory", "currentMemory",
    "blkiotune", "memtune", "memoryBacking", "vcpu", "vcpus", "iothreads", "iothreadids",
    "defaultiothread", "cputune", "numatune",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Assignment:
    """The recorded facts of a device besides its place in the plan.

    :param strategy: name of the strategy.
    :param backend: the binder: ``sim``, ``qemu`` or ``kernel``.
    :param its: id of the physical ITS; None for that of the plan.
    :param options: the strategy's options as text.
    :param node: guest NUMA cell for the expander bus, if the device is the first behind it.
    """

    strategy: str
    backend: str
    its: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    binding: BindingRecord | None = None
    node: int | None = None


def apply(
    domain: DomainXml,
    plan: GuestPlan,
    layout: XmlLayout,
    assignments: Mapping[PciAddress, Assignment],
) -> DomainXml:
    """Return ``domain`` with all devices of ``plan`` behind their vSMMUs.

    Recorded devices do not change; a new device whose physical SMMU and ITS have a recorded vSMMU
    gets a root port behind that one.

    :param layout: the form of the XML, see :meth:`vmm_msi.domxml.support.Support.layout`.
    :param assignments: the facts to record for each new device.
    :raise DomainXmlError: when a device is assigned already or planned elsewhere, an ``<iommu>`` of
        the user conflicts, or indexes, slots or bus numbers are used up.
    """
    edited = domain.copy()
    record = read_record(edited) or DomainRecord(
        metadata_added=edited.root.find("metadata") is None,
        devices_added=edited.root.find("devices") is None,
    )
    if edited.root.find("devices") is None:
        devices = elements.build("devices", {})
        elements.insert_after(edited.root, edited.root[-1], devices)
        devices.text = elements.line_of(devices)
    buses = GuestBuses(edited)
    for vsmmu in plan.vsmmus:
        new = _new_devices(edited, record, vsmmu, assignments)
        if not new:
            continue
        existing = record.vsmmu(vsmmu.smmu, vsmmu.its)
        if existing is None:
            node = assignments[new[0]].node
            ports = len(new) + layout.spare_ports
            record, existing = _add_vsmmu(edited, buses, record, vsmmu, layout, ports, node)
        elif vsmmu.own_iommufd and layout.iommufd_objects:
            _check_iommufd(edited, record, existing, new)
        pxb = existing.pxb
        spare = list(existing.spare_ports)
        for host in new:
            port = spare.pop(0) if spare else add_root_port(edited, buses, pxb)
            iommufd = plan.iommufd and layout.iommufd is IommufdForm.HOSTDEV
            add_hostdev(edited, host, port, layout, iommufd=iommufd, own=existing.iommufd)
            device = _device_record(host, vsmmu, pxb, port, assignments[host])
            record = replace(record, devices=(*record.devices, device))
        while len(spare) < layout.spare_ports:
            spare.append(add_root_port(edited, buses, pxb))
        record = _with_spare(record, pxb, spare)
        if layout.reserve and spare:
            used = [device.root_port for device in record.behind(pxb)]
            reserve(edited, [*used, *spare], layout.reserve)
    if not record.devices:
        return domain.copy()
    if plan.iommufd and layout.iommufd is IommufdForm.DOMAIN:
        record = _add_iommufd(edited, record, layout.fdgroup)
    write_record(edited, record)
    return edited


def plug(
    running: DomainXml,
    plan: GuestPlan,
    layout: XmlLayout,
    assignments: Mapping[PciAddress, Assignment],
) -> DomainXml:
    """Return the XML of a running guest with the new devices of ``plan`` in free root ports.

    QEMU hot-plugs neither an arm-smmuv3 nor a root port behind an expander bus, nor does libvirt
    (``src/qemu/qemu_hotplug.c`` qemuDomainAttachDeviceLive): the guest must have both.

    :raise RefusedError: when the guest lacks one of them; the message names the remedy.
    :raise DomainXmlError: when a device is assigned already or planned elsewhere.
    """
    edited = running.copy()
    record = record_in(edited)
    iommufd = plan.iommufd and layout.iommufd is not IommufdForm.NONE and not edited.iommufd
    for vsmmu in plan.vsmmus:
        new = _new_devices(edited, record, vsmmu, assignments)
        if not new:
            continue
        existing = record.vsmmu(vsmmu.smmu, vsmmu.its)
        action = f"plugging {', '.join(map(str, new))} into the running {running.name}"
        if existing is None:
            its = "" if vsmmu.its is None else f" and ITS {vsmmu.its}"
            raise RefusedError(
                f"{action}: it has no vSMMU for SMMU {vsmmu.smmu}{its}, and QEMU cannot plug one "
                "into a running guest; attach with --scope config, then restart the guest"
            )
        if existing.iommufd is not None:
            raise RefusedError(
                f"{action}: its vSMMU on expander bus {existing.pxb} has the iommufd object "
                f"{existing.iommufd}, and libvirt applies <qemu:override>, which selects it, at "
                "startup only; attach with --scope config, then restart the guest"
            )
        pxb = existing.pxb
        ports = [port for port in existing.spare_ports if next(edited.on_bus(port), None) is None]
        if len(ports) < len(new):
            raise RefusedError(
                f"{action}: its vSMMU on expander bus {pxb} has too few free root ports "
                f"({len(ports)} of {len(new)}), and QEMU cannot plug one into a running guest; "
                f"attach with --scope config --spare-ports {len(new)}, then restart the guest"
            )
        for host, port in zip(new, ports, strict=False):
            add_hostdev(edited, host, port, layout, iommufd=iommufd)
            device = _device_record(host, vsmmu, pxb, port, assignments[host])
            record = replace(record, devices=(*record.devices, device))
        left = [port for port in existing.spare_ports if port not in ports[: len(new)]]
        record = _with_spare(record, pxb, left)
    write_record(edited, record)
    return edited


def unplug(running: DomainXml, host: PciAddress) -> DomainXml:
    """Return the XML of a running guest without the device at ``host``, with its root port free.

    :raise DomainXmlError: when the device is not recorded.
    """
    edited = running.copy()
    record = record_in(edited)
    device = recorded(edited, record, host)
    for hostdev in edited.hostdevs():
        if hostdev.host == host:
            elements.remove(hostdev.element)
    record = replace(record, devices=tuple(d for d in record.devices if d is not device))
    vsmmu = next(vsmmu for vsmmu in record.vsmmus if vsmmu.pxb == device.pxb)
    spare = sorted({*vsmmu.spare_ports, device.root_port})
    write_record(edited, _with_spare(record, device.pxb, spare))
    return edited


def remove(domain: DomainXml, *hosts: PciAddress, record: DomainRecord | None = None) -> DomainXml:
    """Return ``domain`` without the devices at ``hosts`` and what was added for them alone.

    The last device of a vSMMU removes the vSMMU, the last device of all removes the rest. Elements
    that are missing are skipped.

    :param record: the record in ``domain``, if the caller has read it.
    :raise DomainXmlError: when a device is not recorded, or a device of the user is plugged into a
        controller to be removed.
    """
    edited = domain.copy()
    record = record or record_in(edited)
    for hostdev in edited.hostdevs():
        if hostdev.host in hosts:
            elements.remove(hostdev.element)
            iommufd_objects.stop_using(edited, hostdev.host)
    controllers = {controller.index: controller for controller in edited.controllers()}
    for host in hosts:
        device = recorded(edited, record, host)
        remove_controller(edited, controllers.get(device.root_port), ROOT_PORT)
        forget(edited, [device.root_port])
        record = replace(record, devices=tuple(d for d in record.devices if d is not device))
        if not record.behind(device.pxb):
            record = _remove_vsmmu(edited, controllers, record, device.pxb)
    if record.devices:
        write_record(edited, record)
        return edited
    if record.iommu_added:
        for iommu in edited.iommus():
            if iommu.model == "smmuv3" and iommu.pci_bus is None:
                elements.remove(iommu.element)
    if record.iommufd_added:
        for element in edited.root.findall("iommufd"):
            elements.remove(element)
    if record.devices_added and len(edited.devices) == 0:
        elements.remove(edited.devices)
    gic.remove(edited, record)
    write_record(edited, None)
    return edited


def record_bindings(
    domain: DomainXml, bindings: Mapping[PciAddress, BindingRecord | None]
) -> DomainXml:
    """Return ``domain`` with the bindings of recorded devices replaced.

    :raise DomainXmlError: when one of the devices is not recorded.
    """
    edited = domain.copy()
    record = record_in(edited)
    for host in bindings:
        if record.device(host) is None:
            raise DomainXmlError(
                f"recording the binding of {host} in {domain.name}: vmm-msi did not attach that "
                "device; attach it first"
            )
    devices = tuple(
        replace(device, binding=bindings[device.host]) if device.host in bindings else device
        for device in record.devices
    )
    if devices:
        write_record(edited, replace(record, devices=devices))
    return edited


def recorded(domain: DomainXml, record: DomainRecord, host: PciAddress) -> DeviceRecord:
    """Return the record of a device to be removed.

    :raise DomainXmlError: when vmm-msi did not attach it.
    """
    device = record.device(host)
    if device is None:
        attached = ", ".join(str(device.host) for device in record.devices) or "no device"
        raise DomainXmlError(
            f"removing {host} from {domain.name}: vmm-msi did not attach it; it attached {attached}"
        )
    return device


def _device_record(
    host: PciAddress, plan: VsmmuPlan, pxb: int, port: int, assignment: Assignment
) -> DeviceRecord:
    return DeviceRecord(
        host=host,
        strategy=assignment.strategy,
        backend=assignment.backend,
        pxb=pxb,
        root_port=port,
        smmu=plan.smmu,
        its=plan.its if assignment.its is None else assignment.its,
        options=dict(assignment.options),
        binding=assignment.binding,
    )


def _with_spare(record: DomainRecord, pxb: int, spare: Iterable[int]) -> DomainRecord:
    ports = tuple(spare)
    vsmmus = (
        replace(vsmmu, spare_ports=ports) if vsmmu.pxb == pxb else vsmmu for vsmmu in record.vsmmus
    )
    return replace(record, vsmmus=tuple(vsmmus))


def _new_devices(
    domain: DomainXml,
    record: DomainRecord,
    plan: VsmmuPlan,
    assignments: Mapping[PciAddress, Assignment],
) -> list[PciAddress]:
    vsmmu = record.vsmmu(plan.smmu, plan.its)
    present = {hostdev.host for hostdev in domain.assigned()}
    new = []
    for host in plan.devices:
        known = record.device(host)
        if known is not None:
            if vsmmu is None or known.pxb != vsmmu.pxb:
                raise DomainXmlError(
                    f"adding {host} to {domain.name}: it is behind the vSMMU on expander bus "
                    f"{known.pxb} and now planned behind another; detach it first"
                )
            continue
        if host in present:
            raise DomainXmlError(
                f"adding {host} to {domain.name}: a <hostdev> or <qemu:arg> that vmm-msi did not "
                "add assigns it; remove that first"
            )
        if host not in assignments:
            raise DomainXmlError(
                f"adding {host} to {domain.name}: its strategy is missing; pass an assignment for "
                "each new device"
            )
        new.append(host)
    return list(dict.fromkeys(new))


def _add_vsmmu(
    domain: DomainXml,
    buses: GuestBuses,
    record: DomainRecord,
    plan: VsmmuPlan,
    layout: XmlLayout,
    ports: int,
    node: int | None,
) -> tuple[DomainRecord, VsmmuRecord]:
    check_iommus(domain, layout)
    pxb = buses.take_index(0)
    bus_nr = buses.take_bus_nr(pxb, ports)
    target = elements.build("target", {"busNr": str(bus_nr)})
    if node is not None:
        cell = elements.build("node", {})
        cell.text = str(node)
        target.append(cell)
    add_controller(domain, pxb, EXPANDER_BUS, target)
    accelerated = layout.pci_bus and layout.accel and plan.accelerated
    if layout.pci_bus:
        driver = {"pciBus": str(pxb)}
        if accelerated:
            driver["accel"] = "on"
        add_iommu(domain, {**driver, **layout.driver})
    elif not domain.iommus():
        add_iommu(domain, layout.driver)
        record = replace(record, iommu_added=True)
    vsmmu = VsmmuRecord(
        pxb=pxb,
        bus_nr=bus_nr,
        smmu=plan.smmu,
        its=plan.its,
        pci_bus=layout.pci_bus,
        accelerated=accelerated,
        iommufd=_new_iommufd(domain, plan, layout),
    )
    return replace(record, vsmmus=(*record.vsmmus, vsmmu)), vsmmu


def _new_iommufd(domain: DomainXml, plan: VsmmuPlan, layout: XmlLayout) -> str | None:
    """Add an iommufd object for a new vSMMU, unless the guest's own has no device yet.

    :return: its id; None if the vSMMU uses that of the guest.
    """
    shared = any(
        iommufd_objects.used_by(domain, hostdev.host) is None for hostdev in domain.hostdevs()
    )
    if not (plan.own_iommufd and layout.iommufd_objects and shared):
        return None
    name = iommufd_objects.free_id(iommufd_objects.elements_by_id(domain))
    iommufd_objects.add(domain, name)
    return name


def _check_iommufd(
    domain: DomainXml, record: DomainRecord, vsmmu: VsmmuRecord, new: Iterable[PciAddress]
) -> None:
    """Refuse a vSMMU whose devices share the guest's iommufd object with those of others."""
    others = (device for device in record.devices if device.pxb != vsmmu.pxb)
    if vsmmu.iommufd is None and any(
        iommufd_objects.used_by(domain, other.host) is None for other in others
    ):
        raise DomainXmlError(
            f"adding {', '.join(map(str, new))} to {domain.name}: the devices of the vSMMU on "
            f"expander bus {vsmmu.pxb} share an iommufd object with those of other vSMMUs; detach "
            "them first, then attach all with iommufd=each"
        )


def _add_iommufd(domain: DomainXml, record: DomainRecord, fdgroup: str | None) -> DomainRecord:
    if domain.iommufd is False:
        raise DomainXmlError(
            f"enabling iommufd in {domain.name}: it has <iommufd enabled='no'/>; nested "
            "devices need enabled='yes'"
        )
    if domain.iommufd:
        if fdgroup not in {None, domain.iommufd_fdgroup}:
            raise DomainXmlError(
                f"selecting the FD group {fdgroup} in {domain.name}: it has an <iommufd> with "
                f"fdgroup {domain.iommufd_fdgroup!r}; remove that (or detach the devices that were "
                "attached with it) first"
            )
        return record
    before = list(domain.root.iterchildren(*_BEFORE_IOMMUFD))
    attributes = {"enabled": "yes"} if fdgroup is None else {"enabled": "yes", "fdgroup": fdgroup}
    elements.insert_after(domain.root, before[-1], elements.build("iommufd", attributes))
    return replace(record, iommufd_added=True)


def _remove_vsmmu(
    domain: DomainXml,
    controllers: Mapping[int | None, PciController],
    record: DomainRecord,
    pxb: int,
) -> DomainRecord:
    vsmmu = next(vsmmu for vsmmu in record.vsmmus if vsmmu.pxb == pxb)
    for iommu in domain.iommus():
        if vsmmu.pci_bus and iommu.pci_bus == str(pxb):
            elements.remove(iommu.element)
    for port in vsmmu.spare_ports:
        remove_controller(domain, controllers.get(port), ROOT_PORT)
    forget(domain, vsmmu.spare_ports)
    remove_controller(domain, controllers.get(pxb), EXPANDER_BUS)
    if vsmmu.iommufd is not None:
        iommufd_objects.remove(domain, vsmmu.iommufd)
    return replace(record, vsmmus=tuple(kept for kept in record.vsmmus if kept is not vsmmu))
