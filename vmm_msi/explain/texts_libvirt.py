"""What libvirt says when it does not define or start a guest with assigned devices.

Texts are those of libvirt 12.8 in English, sources below ``src/``.
"""

from __future__ import annotations

from vmm_msi.explain.explanation import Program
from vmm_msi.explain.known_text import Text

_NEWER = "which release has what: docs/libvirt.md; a newer one would do"

TEXTS: tuple[Text, ...] = (
    Text(
        "libvirt-iommufd-host",
        Program.LIBVIRT,
        ("IOMMUFD is not supported by host kernel", "cannot open IOMMUFD device"),
        "the host has no /dev/iommu, and the guest asks for iommufd",
        "qemu/qemu_validate.c, util/viriommufd.c",
        why="the kernel was built without CONFIG_IOMMUFD, or the module iommufd is not loaded",
        remedies=(
            (
                "modprobe iommufd; where there is no such module, a kernel with CONFIG_IOMMUFD, "
                "CONFIG_VFIO_DEVICE_CDEV and CONFIG_ARM_SMMU_V3_IOMMUFD"
            ),
            (
                "without a vSMMU: take <iommufd> and the accelerated <iommu> out; vmm-msi detach "
                "{guest} {device} does"
            ),
        ),
    ),
    Text(
        "libvirt-iommufd-qemu",
        Program.LIBVIRT,
        ("IOMMUFD is not supported by this version of qemu",),
        "this QEMU has no iommufd",
        "qemu/qemu_validate.c",
        remedies=(_NEWER,),
    ),
    Text(
        "libvirt-fdgroup",
        Program.LIBVIRT,
        ("file descriptor group '%1$s' was not associated with the domain",),
        "the guest takes /dev/iommu from the file descriptor group {0}, and nobody handed it over",
        "qemu/qemu_process.c qemuProcessGetPassedIommuFd",
        remedies=(
            (
                "start it through the program that hands it over (virDomainFDAssociate, "
                "docs/api.md); virsh start cannot"
            ),
            "have libvirt open /dev/iommu: take fdgroup='{0}' out of <iommufd>",
        ),
    ),
    Text(
        "libvirt-acpi-uefi",
        Program.LIBVIRT,
        ("ACPI requires UEFI on this architecture",),
        "the guest has <acpi/> and no UEFI firmware",
        "qemu/qemu_validate.c qemuValidateDomainDefFeatures",
        why="on Arm it is the firmware that hands the tables over; identity needs them: the RMR is "
        "in the IORT",
        remedies=("<os firmware='efi'>",),
    ),
    Text(
        "libvirt-iommu-acpi",
        Program.LIBVIRT,
        ("IOMMU device: '%1$s' requires ACPI",),
        "the guest has an <iommu model='{0}'> and no ACPI",
        "qemu/qemu_validate.c qemuValidateDomainDeviceDefIOMMU",
        remedies=("<features><acpi/></features> and <os firmware='efi'>",),
    ),
    Text(
        "libvirt-iommu-machine",
        Program.LIBVIRT,
        ("IOMMU device: '%1$s' is only supported with ARM Virt machines",),
        "the guest has an <iommu model='{0}'> and is no Arm guest on the machine virt",
        "qemu/qemu_validate.c qemuValidateDomainDeviceDefIOMMU",
        remedies=("<type arch='aarch64' machine='virt'>",),
    ),
    Text(
        "libvirt-iommu-qemu",
        Program.LIBVIRT,
        (
            "IOMMU device: '%1$s' is not supported with this QEMU binary",
            "IOMMU device: Setting pciBus for '%1$s' is not supported with this QEMU binary",
            "iommu: accel is not supported with this QEMU binary",
            "iommu: cmdqv is not supported with this QEMU binary",
        ),
        "this QEMU is too old for the vSMMU that the guest asks for",
        "qemu/qemu_validate.c qemuValidateDomainDeviceDefIOMMU",
        remedies=(_NEWER,),
    ),
    Text(
        "libvirt-one-iommu",
        Program.LIBVIRT,
        (
            "only a single IOMMU device is supported",
            "IOMMU model smmuv3 must be specified for multiple IOMMU definitions",
            (
                "device-pluggable IOMMU with pciBus attribute must be specified for multiple IOMMU "
                "definitions"
            ),
            "domain already has an iommu device",
        ),
        "the guest has several <iommu>, of which not each is a vSMMU for one expander bus",
        "conf/domain_validate.c virDomainDefIOMMUValidate",
        why="one that serves the whole machine goes alone; a libvirt before 11.10 takes one",
        remedies=(
            "give each <driver pciBus='N'/>, the index of its expander bus, as vmm-msi attach does",
            _NEWER,
        ),
    ),
    Text(
        "libvirt-iommu-attributes",
        Program.LIBVIRT,
        (
            (
                "accel must be enabled for iommu model '%1$s' when setting ats, ril, ssidsize, "
                "oas, or cmdqv"
            ),
            "iommu model '%1$s' doesn't support some additional attributes",
        ),
        "a property of the vSMMU goes with accel='on' alone",
        "conf/domain_validate.c virDomainIOMMUDefValidate",
        remedies=("<driver accel='on'/> as vmm-msi attach {guest} {device} --vsmmu … writes it",),
    ),
    Text(
        "libvirt-smmu-controller",
        Program.LIBVIRT,
        ("Could not find a suitable controller for smmuv3",),
        "an <iommu model='smmuv3'> names a pciBus that is no expander bus",
        "qemu/qemu_command.c qemuBuildPCINestedSmmuv3DevProps",
        why="pciBus is the index of the pcie-expander-bus controller, not its busNr",
        remedies=("have vmm-msi attach write it, or put the controller's index there",),
    ),
    Text(
        "libvirt-not-assignable",
        Program.LIBVIRT,
        (
            "PCI device %1$s is not assignable",
            "Non-endpoint PCI devices cannot be assigned to guests",
        ),
        "libvirt does not assign the device",
        "hypervisor/virhostdev.c virHostdevPreparePCIDevices",
        why="it is a bridge, or it is behind a switch without ACS, so that it can reach its "
        "neighbours past the SMMU",
        remedies=("assign the endpoints behind it; for a switch without ACS, another slot",),
    ),
    Text(
        "libvirt-in-use",
        Program.LIBVIRT,
        (
            "PCI device %1$s is in use by driver %2$s, domain %3$s",
            "PCI device %1$s is in use",
        ),
        "another guest has the device",
        "hypervisor/virhostdev.c virHostdevPreparePCIDevices",
        remedies=("take it out of that guest: vmm-msi detach there, or virsh detach-device",),
    ),
    Text(
        "libvirt-unmanaged",
        Program.LIBVIRT,
        ("Unmanaged PCI device %1$s must be manually detached from the host",),
        "the device is managed='no', and a driver of the host has it",
        "hypervisor/virhostdev.c virHostdevPreparePCIDevices",
        remedies=("virsh nodedev-detach it, or attach it without --unmanaged",),
    ),
    Text(
        "libvirt-no-device",
        Program.LIBVIRT,
        (
            "host pci device %1$s not found",
            "cannot find VFIO device for PCI device %1$s",
            "cannot open VFIO device %1$s",
        ),
        "the device, or its node in /dev/vfio, is not there",
        "util/virpci.c",
        why="it is at another address now, or the kernel has no CONFIG_VFIO_DEVICE_CDEV, which "
        "iommufd needs",
        remedies=("lspci -D for its address; ls /dev/vfio/devices for the node",),
    ),
    Text(
        "libvirt-no-vfio",
        Program.LIBVIRT,
        (
            "VFIO PCI device assignment is not supported by the host",
            "VFIO device assignment is currently not supported on this system",
        ),
        "the host can assign no device: VFIO finds no IOMMU group",
        "qemu/qemu_hostdev.c",
        why="vfio-pci is not loaded, or no SMMU is in use: turned off in the firmware, or missing "
        "from the kernel",
        remedies=("modprobe vfio-pci; ls /sys/kernel/iommu_groups has to show groups",),
    ),
    Text(
        "libvirt-memory-limit",
        Program.LIBVIRT,
        (
            "cannot limit locked memory of process %1$lld to %2$llu",
            "Failed to adjust locked memory limit",
        ),
        "libvirt may not let QEMU lock the guest's memory, which assigned devices need pinned",
        "util/virprocess.c virProcessSetMaxMemLock",
        why="the daemon itself runs with a lower limit and without CAP_SYS_RESOURCE",
        remedies=("LimitMEMLOCK=infinity in the unit of libvirtd or virtqemud",),
    ),
)
