"""What a capture has of a host, and why: the whole list. Nothing else leaves the host."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from vmm_msi.host.files import redact
from vmm_msi.host.files.capture_paths import KERNEL_LOG, PAGE_SIZE, SOFTWARE

if TYPE_CHECKING:
    from collections.abc import Callable


class CaptureKind(Enum):
    """What of a path is taken."""

    FILE = "file"
    #: Where a link leads to; what is there is not taken.
    LINK = "link"
    #: That it is there, and nothing of it.
    FILE_EXISTS = "whether it is there"
    FOLDER_EXISTS = "whether there is such a folder"
    #: The parts of a configuration space that are known.
    CONFIG_SPACE = "parts of a file"


@dataclass(frozen=True, slots=True)
class Source:
    """Files of a host that a capture has.

    :param path: from the root on; ``*`` stands for any characters of one name, ``RELEASE`` for the
        kernel's release and ``PID`` for what the file says that was read before it.
    :param why: what it is for.
    :param cut: returns what of a file is taken.
    :param kept: what that is.
    :raise ValueError: (``cut``) when the file is malformed, so that nothing of it is taken.
    """

    path: str
    why: str
    kind: CaptureKind = CaptureKind.FILE
    cut: Callable[[bytes], bytes] | None = None
    kept: str = ""


_DEVICE = "/sys/bus/pci/devices/*"
_GROUP = "/sys/kernel/iommu_groups/*"
_STREAMS = "which SMMU and which ITS a device is behind"
_ALIASES = "what a device is, and whose quirks and aliases it has"
_DRIVERS = "whether a driver of the host has the device, or one of VFIO"
_OPTIONS = "which options the kernel was built with"
_OPTIONS_KEPT = "options that are on or numbers; no texts"
_LOCKED = "how much memory the daemon that starts guests may lock"

#: Daemons that start QEMU, modular and monolithic (libvirt ``docs/daemons.rst``).
DAEMONS = ("virtqemud", "libvirtd")
#: Modules whose parameters matter here.
MODULES = (
    "arm_smmu_v3",
    "iommufd",
    "kvm",
    "vfio",
    "vfio_iommu_type1",
    "vfio_pci",
    "vfio_pci_core",
)

SOURCES: tuple[Source, ...] = (
    Source("/sys/firmware/acpi/tables/IORT", _STREAMS),
    Source("/sys/firmware/acpi/tables/APIC", "where the ITSes are"),
    Source(
        "/sys/firmware/fdt",
        f"{_STREAMS}, without ACPI",
        cut=redact.device_tree,
        kept="names, and how buses, SMMUs and ITSes are described",
    ),
    Source(PAGE_SIZE, "the page size of stage 2, and of a slot of the SW MSI window"),
    Source("/sys/bus/pci/devices", "that PCI is there", CaptureKind.FOLDER_EXISTS),
    Source(_DEVICE, "which devices there are, below which bridges", CaptureKind.LINK),
    *(
        Source(f"{_DEVICE}/{name}", _ALIASES)
        for name in (
            "class",
            "vendor",
            "device",
            "revision",
            "subsystem_vendor",
            "subsystem_device",
        )
    ),
    Source(f"{_DEVICE}/numa_node", "which NUMA cell a vSMMU belongs to"),
    Source(
        f"{_DEVICE}/config",
        "what kind of port or bridge it is, MSI, MSI-X, ATS, PASID, ACS",
        CaptureKind.CONFIG_SPACE,
        kept="the header and those capabilities",
    ),
    Source(f"{_DEVICE}/driver", _DRIVERS, CaptureKind.LINK),
    Source(f"{_DEVICE}/vfio-dev", _DRIVERS, CaptureKind.FOLDER_EXISTS),
    Source(
        "/lib/modules/RELEASE/modules.alias",
        _DRIVERS,
        cut=redact.vfio_aliases,
        kept="aliases of VFIO drivers",
    ),
    Source(f"{_DEVICE}/iommu", "which SMMU the kernel has it behind", CaptureKind.LINK),
    Source(f"{_DEVICE}/iommu_group", "what can be assigned with what", CaptureKind.LINK),
    Source(f"{_DEVICE}/physfn", "whether it is a virtual function", CaptureKind.LINK),
    Source(f"{_DEVICE}/virtfn*", "its virtual functions", CaptureKind.LINK),
    Source(f"{_DEVICE}/msi_irqs/*", "how many MSIs its driver uses now", CaptureKind.FILE_EXISTS),
    Source("/sys/kernel/iommu_groups", "that the kernel has IOMMUs", CaptureKind.FOLDER_EXISTS),
    Source(f"{_GROUP}/devices/*", "what can be assigned with what", CaptureKind.LINK),
    Source(f"{_GROUP}/reserved_regions", "the MSI window and what guest memory must not cover"),
    Source(f"{_GROUP}/type", "how the host itself uses the IOMMU"),
    Source("/sys/class/iommu", "that the kernel has IOMMUs", CaptureKind.FOLDER_EXISTS),
    Source("/sys/class/iommu/*", "which device is the SMMU at which address", CaptureKind.LINK),
    *(
        source
        for module in MODULES
        for source in (
            Source(f"/sys/module/{module}", "whether it is loaded", CaptureKind.FOLDER_EXISTS),
            Source(
                f"/sys/module/{module}/parameters/*",
                "such as allow_unsafe_interrupts and enable_unsafe_noiommu_mode",
            ),
        )
    ),
    Source("/proc/sys/kernel/osrelease", "which kernel it is"),
    Source("/proc/sys/kernel/version", "which build of it"),
    Source("/proc/config.gz", _OPTIONS, cut=redact.packed_kernel_options, kept=_OPTIONS_KEPT),
    Source("/boot/config-RELEASE", _OPTIONS, cut=redact.kernel_options, kept=_OPTIONS_KEPT),
    Source("/lib/modules/RELEASE/config", _OPTIONS, cut=redact.kernel_options, kept=_OPTIONS_KEPT),
    Source(
        "/proc/cmdline",
        "what was asked of the IOMMU, PCI and VFIO at boot",
        cut=redact.command_line,
        kept="arguments for ACPI, SMMUs, PCI, VFIO, KVM and huge pages",
    ),
    Source(
        "/proc/meminfo",
        "how much memory a guest can have",
        cut=redact.memory,
        kept="the size of memory and huge pages",
    ),
    Source("/dev/iommu", "whether iommufd can be used", CaptureKind.FILE_EXISTS),
    Source("/dev/vfio/vfio", "whether VFIO can be used", CaptureKind.FILE_EXISTS),
    Source("/dev/kvm", "whether KVM can be used", CaptureKind.FILE_EXISTS),
    Source("/sys/firmware/efi", "whether the host was booted by UEFI", CaptureKind.FOLDER_EXISTS),
    Source(
        KERNEL_LOG,
        "what the kernel's drivers say that SMMUs and ITSes can do, and faults",
        kept="lines of drivers for SMMUs, ITSes, VFIO and KVM",
    ),
    Source(SOFTWARE, "which libvirt and QEMU are there", kept="releases alone"),
    *(
        source
        for daemon in DAEMONS
        for source in (
            Source(f"/run/{daemon}.pid", _LOCKED),
            Source("/proc/PID/comm", _LOCKED),
            Source(
                "/proc/PID/limits",
                _LOCKED,
                cut=redact.locked_memory,
                kept="the line on locked memory",
            ),
        )
    ),
)
