"""Check that the elements which vmm-msi added to a libvirt domain are still there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml import iommufd_objects
from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, ROOT_PORT
from vmm_msi.domxml.metadata import DomainRecord, read_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_msi.domxml.libvirt_domain import DomainXml, PciController, PciHostdev
    from vmm_msi.domxml.metadata import DeviceRecord, VsmmuRecord
    from vmm_msi.domxml.placement import Placement
    from vmm_msi.types import PciAddress


def dropped(written: DomainXml, read_back: DomainXml) -> list[str]:
    """Return what vmm-msi added in ``written`` and libvirt dropped or changed in ``read_back``.

    libvirt may reorder elements and add attributes and children. It must keep every element,
    attribute and value that the record in ``written`` stands for. libvirt 9.0, for instance, drops
    the ``<driver>`` of an smmuv3 if it does not validate.

    :return: a noun phrase for each; empty if libvirt kept everything.
    :raise DomainXmlError: when one of the two cannot be read.
    """
    record = read_record(written)
    lost = []
    if record != read_record(read_back):
        lost.append("the vmm-msi record in <metadata>")
    record = record or DomainRecord()
    if written.iommufd and not read_back.iommufd:
        lost.append("<iommufd enabled='yes'/>")
    lost.extend(_iommus(written, read_back, record))
    lost.extend(_iommufd_objects(read_back, record))
    before, after = written.hostdevs(), read_back.hostdevs()
    lost.extend(_recorded(record, read_back.controllers(), before, after))
    return lost


def gone(placement: Placement, record: DomainRecord) -> list[str]:
    """Return what vmm-msi added to a domain and another program removed since.

    :param placement: the buses and devices of the domain.
    :param record: the record in the domain.
    :return: a noun phrase for each; empty if nothing is missing.
    :raise DomainXmlError: when an assigned device cannot be read.
    """
    if record == DomainRecord():
        return []
    hostdevs = tuple(hostdev for hostdev in placement.hostdevs if hostdev.argument is None)
    lost = [*_recorded(record, placement.controllers, hostdevs, hostdevs)]
    drivers = {iommu.pci_bus: iommu.driver for iommu in placement.iommus if iommu.model == "smmuv3"}
    for vsmmu in record.vsmmus:
        driver = drivers.get(str(vsmmu.pxb) if vsmmu.pci_bus else None)
        whose = f"the <iommu model='smmuv3'> of the {EXPANDER_BUS} with index {vsmmu.pxb}"
        if driver is None:
            lost.append(whose)
        elif vsmmu.accelerated and driver.get("accel") != "on":
            lost.append(f"accel='on' of {whose}")
    if record.iommufd_added and not placement.domain.iommufd:
        lost.append("<iommufd enabled='yes'/>")
    lost.extend(_iommufd_objects(placement.domain, record))
    return lost


def _iommufd_objects(domain: DomainXml, record: DomainRecord) -> Iterator[str]:
    """Yield the recorded iommufd objects that a domain lacks, and devices that do not use them."""
    present = iommufd_objects.elements_by_id(domain)
    for vsmmu in record.vsmmus:
        if vsmmu.iommufd is None:
            continue
        if vsmmu.iommufd not in present:
            yield f"-object {vsmmu.iommufd} in <qemu:commandline>"
        for device in record.behind(vsmmu.pxb):
            if iommufd_objects.used_by(domain, device.host) != vsmmu.iommufd:
                yield f"the <qemu:override> with iommufd {vsmmu.iommufd} of {device.host}"


def _recorded(
    record: DomainRecord,
    controllers: Iterable[PciController],
    before: Iterable[PciHostdev],
    after: Iterable[PciHostdev],
) -> Iterator[str]:
    """Yield the recorded buses and devices that a domain lacks, or has elsewhere.

    :param before: the assigned devices as vmm-msi wrote them.
    :param after: those of the domain, as are ``controllers``.
    """
    by_index = {controller.index: controller for controller in controllers}
    for vsmmu in record.vsmmus:
        yield from _vsmmu(vsmmu, by_index)
    written = {hostdev.host: hostdev for hostdev in before}
    present = {hostdev.host: hostdev for hostdev in after}
    for device in record.devices:
        yield from _device(device, written, present, by_index)


def _iommus(written: DomainXml, read_back: DomainXml, record: DomainRecord) -> Iterator[str]:
    if not record.vsmmus:
        return
    left = [(iommu.model, iommu.driver) for iommu in read_back.iommus()]
    for iommu in written.iommus():
        match = next(
            (
                pair
                for pair in left
                if pair[0] == iommu.model and iommu.driver.items() <= pair[1].items()
            ),
            None,
        )
        if match is not None:
            left.remove(match)
            continue
        words = " ".join(f"{name}='{value}'" for name, value in iommu.driver.items())
        driver = f"<driver {words}> of " if words else ""
        yield f"{driver}<iommu model='{iommu.model}'>"


def _vsmmu(vsmmu: VsmmuRecord, controllers: dict[int | None, PciController]) -> Iterator[str]:
    controller = controllers.get(vsmmu.pxb)
    if controller is None or controller.model != EXPANDER_BUS:
        yield f"the {EXPANDER_BUS} with index {vsmmu.pxb}"
    elif controller.bus_nr != vsmmu.bus_nr:
        yield f"busNr {vsmmu.bus_nr} of the {EXPANDER_BUS} with index {vsmmu.pxb}"
    for port in vsmmu.spare_ports:
        yield from _port(port, vsmmu.pxb, controllers)


def _port(index: int, pxb: int, controllers: dict[int | None, PciController]) -> Iterator[str]:
    port = controllers.get(index)
    if port is None or port.model != ROOT_PORT:
        yield f"the {ROOT_PORT} with index {index}"
    elif port.address is None or port.address.bus != pxb:
        yield f"the address of the {ROOT_PORT} with index {index}"


def _device(
    device: DeviceRecord,
    before: dict[PciAddress, PciHostdev],
    after: dict[PciAddress, PciHostdev],
    controllers: dict[int | None, PciController],
) -> Iterator[str]:
    yield from _port(device.root_port, device.pxb, controllers)
    hostdev = after.get(device.host)
    if hostdev is None:
        yield f"the <hostdev> of {device.host}"
        return
    if hostdev.guest is None or hostdev.guest.bus != device.root_port:
        yield f"the guest address of the <hostdev> of {device.host}"
    written = before.get(device.host)
    if written is not None and written.iommufd and not hostdev.iommufd:
        yield f"<driver iommufd='yes'> of the <hostdev> of {device.host}"
