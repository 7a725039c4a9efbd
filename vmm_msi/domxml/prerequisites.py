"""Check a domain XML for the prerequisites of a nested vSMMU; the caller selects which matter."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.domxml.overrides import QEMU
from vmm_msi.domxml.reserve import PROPERTY
from vmm_msi.domxml.support import ARCH, MACHINE

if TYPE_CHECKING:
    from vmm_msi.domxml.libvirt_domain import DomainXml


class Check(StrEnum):
    """A prerequisite."""

    ARCH = "arch"
    MACHINE = "machine"
    GIC = "gic"
    ACPI = "acpi"
    FIRMWARE = "firmware"
    KVM = "kvm"


class Problem(NamedTuple):
    """A prerequisite that is not met: the value in the XML; the required value and why."""

    check: Check
    words: str

    def __str__(self) -> str:
        return self.words


#: Versions of ``<gic>`` with an ITS, in emulated guests and in KVM guests. libvirt gives the latter
#: the newest version of the host (``src/qemu/qemu_domain.c`` qemuDomainDefEnableDefaultFeatures),
#: which has an ITS if the host has one.
_WITH_ITS = ({"3"}, {"3", "host", None})


def problems(domain: DomainXml) -> tuple[Problem, ...]:
    """Return the unmet prerequisites of a nested vSMMU with MSIs, in the order of the XML.

    ITS and SMMUv3 exist on QEMU's ``virt`` with a GICv3; only the ACPI IORT has the RMR for
    doorbells, and libvirt requires UEFI with ACPI on aarch64 (``src/qemu/qemu_validate.c``); QEMU
    accelerates a vSMMU only under KVM.
    """
    unmet = []
    kind = domain.kind
    if kind.arch != ARCH:
        unmet.append(Problem(Check.ARCH, f"arch is {kind.arch!r}; SMMUv3 needs {ARCH!r}"))
    if not kind.is_virt:
        machine = kind.machine or ""
        unmet.append(Problem(Check.MACHINE, f"machine is {machine!r}; SMMUv3 needs {MACHINE!r}"))
    if domain.gic_version not in _WITH_ITS[domain.type == "kvm"]:
        given = "not given" if domain.gic_version is None else repr(domain.gic_version)
        unmet.append(Problem(Check.GIC, f"<gic version> is {given}; an ITS needs '3'"))
    if not domain.acpi:
        unmet.append(Problem(Check.ACPI, "<acpi/> is missing; without ACPI the guest gets no RMR"))
    if not domain.firmware:
        unmet.append(Problem(Check.FIRMWARE, "firmware is missing; ACPI needs <os firmware='efi'>"))
    if domain.type != "kvm":
        unmet.append(
            Problem(Check.KVM, f"domain type is {domain.type!r}; an accelerated vSMMU needs 'kvm'")
        )
    return tuple(unmet)


def keeps_bars(domain: DomainXml, *, for_each_port: bool = True) -> bool:
    """Return whether the XML ensures that Linux keeps assigned BARs when a device is plugged in.

    An expander bus has the memory that the firmware assigned to its ports, and no more (QEMU
    ``hw/pci-host/gpex-acpi.c``). Linux needs a prefetchable window for the port of a new device; if
    there is no room, it takes the BARs of the other devices behind that bus away
    (``drivers/pci/setup-bus.c`` pci_assign_unassigned_bridge_resources). QEMU's pcie-root-port can
    make the firmware reserve a window, or the guest's command line can disable windows.

    :param for_each_port: accept memory that is reserved for individual ports, not for all ports.
    """
    command_line = domain.root.findtext("os/cmdline") or ""
    arguments = [arg.get("value", "") for arg in domain.root.iterdescendants(f"{QEMU}arg")]
    if "hpmmioprefsize=0" in command_line:
        return True
    if any(f"pcie-root-port.{PROPERTY}" in argument for argument in arguments):
        return True
    properties = domain.root.iterdescendants(f"{QEMU}property") if for_each_port else ()
    return any(element.get("name") == PROPERTY for element in properties)
