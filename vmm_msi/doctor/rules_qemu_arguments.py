"""Rules about the devices that a definition adds to QEMU's command line itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.guest_rule_helpers import at, subject
from vmm_msi.domxml.guest_memory import locking
from vmm_msi.domxml.iommufd_objects import elements_by_id
from vmm_msi.domxml.placement import is_accelerated
from vmm_msi.quantity import quantity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.domxml.libvirt_domain import PciHostdev
    from vmm_msi.domxml.placement import Placement


def command_line(case: Case) -> Iterator[Finding]:
    """Yield devices that QEMU's command line assigns, and its parts that were not examined."""
    if case.guest is None:
        return
    xml = case.guest.xml
    placement = case.guest.placement
    for hostdev in placement.hostdevs:
        if hostdev.argument is None:
            continue
        yield Finding(
            "qemu-commandline",
            Severity.WARNING,
            str(hostdev.host),
            tuple(_evidence(placement, hostdev)),
            "libvirt does not know that the guest has the device: it neither binds it to vfio-pci, "
            "nor keeps other guests from it, nor raises QEMU's limit on locked memory; a QEMU that "
            "libvirt runs for the system may open neither its VFIO device nor /dev/iommu unless "
            "cgroup_device_acl lists them.",
            f"Remove the <qemu:arg>s, and assign it with vmm-msi attach {xml.name} {hostdev.host}.",
        )
    if placement.arguments.unexamined:
        yield Finding(
            "qemu-commandline",
            Severity.UNKNOWN,
            subject(xml),
            tuple(at(xml, part.element, str(part)) for part in placement.arguments.unexamined),
            "These words of <qemu:commandline> were not examined; they may add devices and vSMMUs, "
            "or change those of libvirt.",
            "Use elements of libvirt instead, or -device with host=0000:01:00.0.",
        )


def iommufd_objects(case: Case) -> Iterator[Finding]:
    """Yield the iommufd objects on QEMU's command line, with the memory that is pinned for them."""
    if case.guest is None or not case.guest.placement.hostdevs:
        return
    xml = case.guest.xml
    further = elements_by_id(xml)
    if not further:
        return
    devices = [hostdev for hostdev in case.guest.placement.hostdevs if hostdev.argument is None]
    lock = locking(xml, len(devices))
    ram = lock.needed // len(further)
    objects = quantity(len(further), "iommufd object")
    limit = "unlimited" if lock.allowed is None else f"{lock.allowed} bytes"
    yield Finding(
        "iommufd-objects",
        Severity.WARNING,
        subject(xml),
        (
            *(at(xml, element, f"-object {name}") for name, element in further.items()),
            Evidence(
                f"{xml.source}: RAM",
                f"{ram} bytes, pinned once for each object: {(len(further) + 1) * ram} bytes",
            ),
        ),
        f"QEMU opens /dev/iommu itself for {objects}, and exits at startup if it may not. "
        f"{lock.needed} bytes of RAM count for QEMU's user, with those of other guests, against "
        f"its limit of locked memory ({limit}); above it QEMU exits.",
        "List /dev/iommu in cgroup_device_acl of /etc/libvirt/qemu.conf, and give QEMU's user "
        "access to it; or use multi-its:mode=vsmmu or identity without iommufd=each.",
    )


def _evidence(placement: Placement, hostdev: PciHostdev) -> Iterator[Evidence]:
    argument = hostdev.argument
    if argument is None:
        return
    xml = placement.domain
    yield at(xml, hostdev.element, f"-device {argument.driver}, {hostdev.host} on {argument.bus}")
    vsmmu = placement.vsmmu_of(hostdev.element)
    if vsmmu is None:
        return
    kind = "accelerated" if is_accelerated(vsmmu) else "emulated"
    bus = "the whole machine" if vsmmu.pci_bus is None else f"bus {vsmmu.pci_bus}"
    yield at(xml, vsmmu.element, f"its vSMMU, {kind}, of {bus}")
