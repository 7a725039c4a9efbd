"""What a domain XML lacks for a nested vSMMU. Which of it matters is for the caller to say."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.domxml.reserve import PROPERTY, QEMU
from vmm_msi.domxml.support import ARCH, MACHINE

if TYPE_CHECKING:
    from vmm_msi.domxml.libvirt_domain import DomainXml


class Check(StrEnum):
    """One thing that is looked at."""

    ARCH = "arch"
    MACHINE = "machine"
    GIC = "gic"
    ACPI = "acpi"
    FIRMWARE = "firmware"
    KVM = "kvm"


class Problem(NamedTuple):
    """One thing that is wrong, in words: what is there; what is needed and why."""

    check: Check
    words: str

    def __str__(self) -> str:
        return self.words


def problems(domain: DomainXml) -> tuple[Problem, ...]:
    """Return what keeps the guest from using a nested vSMMU with MSIs, in the order of the XML.

    ITS and SMMUv3 exist on QEMU's ``virt`` with a GICv3; the RMR for doorbells is in the ACPI IORT
    only, and libvirt asks for UEFI with ACPI on aarch64 (``src/qemu/qemu_validate.c``); QEMU
    accelerates a vSMMU under KVM only.
    """
    found = []
    if domain.arch != ARCH:
        found.append(Problem(Check.ARCH, f"arch is {domain.arch!r}; SMMUv3 needs {ARCH!r}"))
    if not domain.kind.is_virt:
        machine = domain.machine or ""
        found.append(Problem(Check.MACHINE, f"machine is {machine!r}; SMMUv3 needs {MACHINE!r}"))
    if domain.gic_version != "3":
        given = "not given" if domain.gic_version is None else repr(domain.gic_version)
        found.append(Problem(Check.GIC, f"<gic version> is {given}; an ITS needs '3'"))
    if not domain.acpi:
        found.append(
            Problem(Check.ACPI, "<acpi/> is missing; without ACPI the guest is told of no RMR")
        )
    if not domain.firmware:
        found.append(Problem(Check.FIRMWARE, "firmware is missing; ACPI needs <os firmware='efi'>"))
    if domain.type != "kvm":
        found.append(
            Problem(Check.KVM, f"domain type is {domain.type!r}; an accelerated vSMMU needs 'kvm'")
        )
    return tuple(found)


def keeps_bars(domain: DomainXml, *, for_each_port: bool = True) -> bool:
    """Tell whether the XML shows that Linux keeps the BARs it gave out when a device is plugged in.

    Behind an expander bus there is the memory that the firmware gave to the ports, and no more
    (QEMU ``hw/pci-host/gpex-acpi.c``). Linux wants a prefetchable window for a port that a device
    is plugged into, and where there is no room it takes what it gave to the others behind that bus
    away (``drivers/pci/setup-bus.c`` pci_assign_unassigned_bridge_resources). QEMU's pcie-root-port
    can have the firmware reserve one, or the guest can be told to want none.

    :param for_each_port: also where memory is reserved port by port, not for all there will be.
    """
    told = domain.root.findtext("os/cmdline") or ""
    arguments = [each.get("value", "") for each in domain.root.iterdescendants(f"{QEMU}arg")]
    if "hpmmioprefsize=0" in told or any(f"pcie-root-port.{PROPERTY}" in a for a in arguments):
        return True
    properties = domain.root.iterdescendants(f"{QEMU}property") if for_each_port else ()
    return any(each.get("name") == PROPERTY for each in properties)
