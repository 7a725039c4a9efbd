"""The files that a capture has of a host, and why: the whole list. Nothing else leaves the host."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from vmm_msi.host.files import redact
from vmm_msi.host.files.capture_paths import KERNEL_LOG, MSI_BINDINGS, PAGE_SIZE, SOFTWARE

if TYPE_CHECKING:
    from collections.abc import Callable


class CaptureKind(Enum):
    """The part of a path that a capture has."""

    FILE = "file"
    #: The target of a link, without the content of the target.
    LINK = "link"
    #: Its existence, without the content.
    FILE_EXISTS = "existence of the file"
    FOLDER_EXISTS = "existence of the folder"
    #: The known parts of a configuration space.
    CONFIG_SPACE = "parts of a file"


@dataclass(frozen=True, slots=True)
class CapturedPath:
    """Files of a host that a capture has.

    :param path: from the root on; ``*`` stands for any characters of one name, ``RELEASE`` for the
        kernel's release and ``PID`` for the content of the file before it in the list.
    :param why: the use of the files.
    :param reduce: returns the part of the content that is kept; raises ValueError if the content
        is malformed, so that none of it is kept.
    :param kept: describes that part.
    """

    path: str
    why: str
    kind: CaptureKind = CaptureKind.FILE
    reduce: Callable[[bytes], bytes] | None = None
    kept: str = ""


_DEVICE = "/sys/bus/pci/devices/*"
_GROUP = "/sys/kernel/iommu_groups/*"
_STREAMS = "SMMU and ITS of each device"
_ALIASES = "kind of device, and its quirks and aliases"
_DRIVERS = "driver of a device: the host's or one of VFIO"
_OPTIONS = "options of the kernel's configuration"
_OPTIONS_KEPT = "options that are on or numbers; no strings"
_LOCKED = "limit of locked memory of the daemon that starts guests"

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

CAPTURED_PATHS: tuple[CapturedPath, ...] = (
    CapturedPath("/sys/firmware/acpi/tables/IORT", _STREAMS),
    CapturedPath("/sys/firmware/acpi/tables/APIC", "addresses of the ITSes"),
    CapturedPath(
        "/sys/firmware/fdt",
        f"{_STREAMS}, without ACPI",
        reduce=redact.device_tree,
        kept="names, and the descriptions of buses, SMMUs and ITSes",
    ),
    CapturedPath(PAGE_SIZE, "page size of stage 2, and of a slot of the SW MSI window"),
    CapturedPath("/sys/bus/pci/devices", "the host has PCI", CaptureKind.FOLDER_EXISTS),
    CapturedPath(_DEVICE, "devices, and the bridges above them", CaptureKind.LINK),
    *(
        CapturedPath(f"{_DEVICE}/{name}", _ALIASES)
        for name in (
            "class",
            "vendor",
            "device",
            "revision",
            "subsystem_vendor",
            "subsystem_device",
        )
    ),
    CapturedPath(f"{_DEVICE}/numa_node", "NUMA cell of a vSMMU"),
    CapturedPath(
        f"{_DEVICE}/config",
        "kind of port or bridge, MSI, MSI-X, ATS, PASID, ACS",
        CaptureKind.CONFIG_SPACE,
        kept="the header and those capabilities",
    ),
    CapturedPath(f"{_DEVICE}/driver", _DRIVERS, CaptureKind.LINK),
    CapturedPath(f"{_DEVICE}/vfio-dev", _DRIVERS, CaptureKind.FOLDER_EXISTS),
    CapturedPath(
        "/lib/modules/RELEASE/modules.alias",
        _DRIVERS,
        reduce=redact.vfio_aliases,
        kept="aliases of VFIO drivers",
    ),
    CapturedPath(f"{_DEVICE}/iommu", "SMMU of the device, by the kernel", CaptureKind.LINK),
    CapturedPath(f"{_DEVICE}/iommu_group", "devices that are assigned together", CaptureKind.LINK),
    CapturedPath(f"{_DEVICE}/physfn", "physical function of a virtual one", CaptureKind.LINK),
    CapturedPath(f"{_DEVICE}/virtfn*", "virtual functions of a physical one", CaptureKind.LINK),
    CapturedPath(
        f"{_DEVICE}/msi_irqs/*", "number of MSIs that its driver uses", CaptureKind.FILE_EXISTS
    ),
    CapturedPath("/sys/kernel/iommu_groups", "the kernel drives IOMMUs", CaptureKind.FOLDER_EXISTS),
    CapturedPath(f"{_GROUP}/devices/*", "devices that are assigned together", CaptureKind.LINK),
    CapturedPath(
        f"{_GROUP}/reserved_regions", "MSI window, and addresses that guest memory must not cover"
    ),
    CapturedPath(f"{_GROUP}/type", "the host's own use of the IOMMU"),
    CapturedPath("/sys/class/iommu", "the kernel drives IOMMUs", CaptureKind.FOLDER_EXISTS),
    CapturedPath("/sys/class/iommu/*", "device and address of each SMMU", CaptureKind.LINK),
    *(
        captured
        for module in MODULES
        for captured in (
            CapturedPath(
                f"/sys/module/{module}", "the module is loaded", CaptureKind.FOLDER_EXISTS
            ),
            CapturedPath(
                f"/sys/module/{module}/parameters/*",
                "allow_unsafe_interrupts, enable_unsafe_noiommu_mode and others",
            ),
        )
    ),
    CapturedPath("/proc/sys/kernel/osrelease", "release of the kernel"),
    CapturedPath("/proc/sys/kernel/version", "build of the kernel"),
    CapturedPath(
        "/proc/config.gz", _OPTIONS, reduce=redact.packed_kernel_options, kept=_OPTIONS_KEPT
    ),
    CapturedPath(
        "/boot/config-RELEASE", _OPTIONS, reduce=redact.kernel_options, kept=_OPTIONS_KEPT
    ),
    CapturedPath(
        "/lib/modules/RELEASE/config", _OPTIONS, reduce=redact.kernel_options, kept=_OPTIONS_KEPT
    ),
    CapturedPath(
        "/proc/cmdline",
        "boot options of IOMMU, PCI and VFIO",
        reduce=redact.command_line,
        kept="known arguments for ACPI, SMMUs, PCI, VFIO, KVM and huge pages",
    ),
    CapturedPath(
        "/proc/meminfo",
        "memory for guests",
        reduce=redact.memory,
        kept="the size of memory and huge pages",
    ),
    CapturedPath(
        MSI_BINDINGS,
        "version of the kernel's interface for guest MSI bindings",
        reduce=redact.first_line,
        kept="the line with the version",
    ),
    CapturedPath("/dev/iommu", "iommufd is available", CaptureKind.FILE_EXISTS),
    CapturedPath("/dev/vfio/vfio", "VFIO is available", CaptureKind.FILE_EXISTS),
    CapturedPath("/dev/kvm", "KVM is available", CaptureKind.FILE_EXISTS),
    CapturedPath("/sys/firmware/efi", "UEFI booted the host", CaptureKind.FOLDER_EXISTS),
    CapturedPath(
        KERNEL_LOG,
        "features of SMMUs and ITSes that drivers log, and faults",
        kept="lines of drivers for SMMUs, ITSes, VFIO and KVM",
    ),
    CapturedPath(SOFTWARE, "releases of libvirt and QEMU", kept="the releases"),
    *(
        captured
        for daemon in DAEMONS
        for captured in (
            CapturedPath(f"/run/{daemon}.pid", _LOCKED),
            CapturedPath("/proc/PID/comm", _LOCKED),
            CapturedPath(
                "/proc/PID/limits",
                _LOCKED,
                reduce=redact.locked_memory,
                kept="the line about locked memory",
            ),
        )
    ),
)
