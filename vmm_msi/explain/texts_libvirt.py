"""libvirt messages about guests with assigned devices that it does not define or start.

Texts are those of libvirt 12.8 in English; source files are below ``src/``.
"""

from __future__ import annotations

from vmm_msi.explain.explanation import Program
from vmm_msi.explain.known_text import Case, Text

_NEWER = "use a newer release; docs/libvirt.md lists what each release supports"

TEXTS: tuple[Text, ...] = (
    Text(
        "libvirt-iommufd-host",
        Program.LIBVIRT,
        ("IOMMUFD is not supported by host kernel", "cannot open IOMMUFD device"),
        "the guest uses iommufd, but the host has no /dev/iommu",
        "qemu/qemu_validate.c, util/viriommufd.c",
        why="the kernel was built without CONFIG_IOMMUFD, or the module iommufd is not loaded",
        remedies=(
            (
                "run modprobe iommufd; if the module does not exist, use a kernel with "
                "CONFIG_IOMMUFD, CONFIG_VFIO_DEVICE_CDEV and CONFIG_ARM_SMMU_V3_IOMMUFD"
            ),
            (
                "or run without a vSMMU: remove <iommufd> and the accelerated <iommu>, as vmm-msi "
                "detach {guest} {device} does"
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
        "the guest expects /dev/iommu in file descriptor group {0}, but no program passed it in",
        "qemu/qemu_process.c qemuProcessGetPassedIommuFd",
        remedies=(
            (
                "start it with the program that passes it in (virDomainFDAssociate, docs/api.md); "
                "virsh start cannot"
            ),
            "let libvirt open /dev/iommu: remove fdgroup='{0}' from <iommufd>",
        ),
    ),
    Text(
        "libvirt-fdgroup-unused",
        Program.LIBVIRT,
        (
            "Only one file descriptor needs to be associated with iommufd",
            "Setting 'fdgroup' when 'iommufd' is disabled is not supported.",
        ),
        "the definition or the program that starts the guest passes file descriptors that the "
        "guest does not use",
        "conf/domain_validate.c virDomainDefIOMMUFDValidate; qemu/qemu_process.c",
        remedies=("remove fdgroup from <iommufd>, or pass one file descriptor of /dev/iommu",),
    ),
    Text(
        "libvirt-acpi-uefi",
        Program.LIBVIRT,
        ("ACPI requires UEFI on this architecture",),
        "the guest has <acpi/> but no UEFI firmware",
        "qemu/qemu_validate.c qemuValidateDomainDefFeatures",
        why="on Arm the firmware passes the ACPI tables to the guest; identity needs them, because "
        "the RMR is in the IORT",
        remedies=("use <os firmware='efi'>",),
    ),
    Text(
        "libvirt-iommu-acpi",
        Program.LIBVIRT,
        ("IOMMU device: '%1$s' requires ACPI",),
        "the guest has an <iommu model='{0}'> but no ACPI",
        "qemu/qemu_validate.c qemuValidateDomainDeviceDefIOMMU",
        remedies=("use <features><acpi/></features> and <os firmware='efi'>",),
    ),
    Text(
        "libvirt-iommu-machine",
        Program.LIBVIRT,
        ("IOMMU device: '%1$s' is only supported with ARM Virt machines",),
        "the guest has an <iommu model='{0}'> but is not an Arm guest with machine type virt",
        "qemu/qemu_validate.c qemuValidateDomainDeviceDefIOMMU",
        remedies=("use <type arch='aarch64' machine='virt'>",),
    ),
    Text(
        "libvirt-iommu-qemu",
        Program.LIBVIRT,
        (
            "IOMMU device: '%1$s' is not supported with this QEMU binary",
            "IOMMU device: Setting pciBus for '%1$s' is not supported with this QEMU binary",
            "iommu: accel is not supported with this QEMU binary",
            "iommu: cmdqv is not supported with this QEMU binary",
            "iommu: page granule is not supported with this QEMU binary",
        ),
        "this QEMU is too old for the guest's vSMMU",
        "qemu/qemu_validate.c qemuValidateDomainDeviceDefIOMMU",
        remedies=(_NEWER,),
    ),
    Text(
        "libvirt-one-iommu",
        Program.LIBVIRT,
        (
            "IOMMU model smmuv3 must be specified for multiple IOMMU definitions",
            (
                "device-pluggable IOMMU with pciBus attribute must be specified for multiple IOMMU "
                "definitions"
            ),
            "domain already has an iommu device",
        ),
        "the guest has several <iommu>, and not all of them are vSMMUs of an expander bus",
        "conf/domain_validate.c virDomainDefIOMMUValidate",
        why="a machine-wide <iommu> must be the only one; libvirt before 11.10 accepts only one",
        remedies=(
            "give each one a <driver pciBus='N'/> for its expander bus, as vmm-msi attach does",
            _NEWER,
        ),
        older=("only a single IOMMU device is supported",),
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
        "a property of the vSMMU requires accel='on'",
        "conf/domain_validate.c virDomainIOMMUDefValidate",
        remedies=("use <driver accel='on'/>, as vmm-msi attach {guest} {device} --vsmmu … does",),
        older=("iommu model '%s' doesn't support additional attributes",),
    ),
    Text(
        "libvirt-smmu-controller",
        Program.LIBVIRT,
        ("Could not find a suitable controller for smmuv3",),
        "pciBus of an <iommu model='smmuv3'> is not an expander bus",
        "qemu/qemu_command.c qemuBuildPCINestedSmmuv3DevProps",
        why="pciBus is the index of the pcie-expander-bus controller, not its busNr",
        remedies=("let vmm-msi attach write it, or set it to the controller's index",),
    ),
    Text(
        "libvirt-not-assignable",
        Program.LIBVIRT,
        (
            "PCI device %1$s is not assignable",
            "Non-endpoint PCI devices cannot be assigned to guests",
        ),
        "libvirt refuses to assign the device",
        "hypervisor/virhostdev.c virHostdevPreparePCIDevices",
        why="it is a bridge, or it is behind a switch without ACS and can reach its neighbours "
        "without passing the SMMU",
        remedies=("assign the endpoints behind the bridge; use a slot behind a switch with ACS",),
    ),
    Text(
        "libvirt-in-use",
        Program.LIBVIRT,
        (
            "PCI device %1$s is in use by driver %2$s, domain %3$s",
            "PCI device %1$s is in use",
            (
                "PCI device %1$04x:%2$02x:%3$02x.%4$x allocated from network %5$s is already in "
                "use by domain %6$s"
            ),
        ),
        "another guest has the device",
        "hypervisor/virhostdev.c virHostdevPreparePCIDevices",
        remedies=("remove it from that guest with vmm-msi detach or virsh detach-device",),
    ),
    Text(
        "libvirt-unmanaged",
        Program.LIBVIRT,
        ("Unmanaged PCI device %1$s must be manually detached from the host",),
        "the device is managed='no', but a host driver is bound to it",
        "hypervisor/virhostdev.c virHostdevPreparePCIDevices",
        remedies=("run virsh nodedev-detach, or attach it without --unmanaged",),
    ),
    Text(
        "libvirt-no-device",
        Program.LIBVIRT,
        (
            "host pci device %1$s not found",
            "cannot find VFIO device for PCI device %1$s",
            "cannot open VFIO device %1$s",
        ),
        "the device or its node in /dev/vfio is missing",
        "util/virpci.c",
        why="its address changed, or the kernel has no CONFIG_VFIO_DEVICE_CDEV, which iommufd "
        "requires",
        remedies=("check its address with lspci -D and its node with ls /dev/vfio/devices",),
    ),
    Text(
        "libvirt-no-group",
        Program.LIBVIRT,
        (
            "Unable to resolve device %1$s iommu_group symlink %2$s",
            "Invalid device %1$s iommu_group file %2$s is not a symlink",
            "device %1$s iommu_group symlink %2$s has invalid group number %3$s",
        ),
        "the device has no IOMMU group: no SMMU translates its DMA",
        "util/virpci.c virPCIDeviceAddressGetIOMMUGroupNum",
        why="the SMMU is disabled in the firmware or has no kernel driver, or the firmware's "
        "tables (iommu-map, IORT) do not route the device to it; or the device was removed",
        remedies=("look up the SMMU of each device with vmm-msi topology show",),
    ),
    Text(
        "libvirt-invalid-value",
        Program.LIBVIRT,
        (
            "Invalid value for attribute '%1$s' in element '%2$s': '%3$s'.",
            "Invalid value for attribute '%1$s' in element '%2$s': Zero is not permitted",
            "Missing required attribute '%1$s' in element '%2$s'",
        ),
        "libvirt does not accept the definition: attribute {0} of <{1}>",
        "util/virxml.c virXMLPropEnumInternal, virXMLPropInt, virXMLPropTristateSwitch",
        cases={
            "'pciBus' in element 'driver'": Case(
                "pciBus is the index of the expander bus as a decimal number, such as 1, not 0x01"
            ),
            "'model' in element 'iommu'": Case(
                "this libvirt does not know this iommu model. smmuv3Dev and nestedSmmuv3 are names "
                "of patches of 2025; the one of a vSMMU is smmuv3"
            ),
            "Expected integer value": Case("the value has to be a decimal number"),
            "Expected non-negative": Case("the value has to be a decimal number, 0 or more"),
            "Zero is not permitted": Case("the value has to be a number larger than 0"),
            "in element 'driver'": Case(
                "switches of a vSMMU, such as accel, ats, ril and cmdqv, are 'on' or 'off'"
            ),
            "in element 'iommufd'": Case("enabled is 'yes' or 'no'"),
            "in element 'address'": Case("parts of PCI addresses are numbers, such as 0x01"),
        },
        remedies=(
            (
                "let vmm-msi attach or render write the definition; vmm-msi doctor --domain FILE "
                "lists the values that libvirt accepts"
            ),
        ),
        older=("Invalid value for attribute '%s' in element '%s': '%s'.",),
    ),
    Text(
        "libvirt-schema",
        Program.LIBVIRT,
        (
            "Unable to validate doc against %1$s",
            "XML document failed to validate against schema: %1$s",
        ),
        "libvirt's schema does not allow the definition",
        "util/virxml.c virXMLValidatorValidate",
        cases={
            "Extra element": Case(
                "the element named is not allowed there, or one of its attributes has a value that "
                "this release does not know"
            ),
        },
        why="an element, an attribute or a value is unknown to this release, such as accel before "
        "12.8, pciBus before 11.10 or <iommufd> before 12.2",
        remedies=(_NEWER, "let vmm-msi attach or render write the definition"),
    ),
    Text(
        "libvirt-driver",
        Program.LIBVIRT,
        (
            "Failed to unbind PCI device '%1$s' from %2$s",
            "Failed to trigger a probe for PCI device '%1$s'",
            "Failed to add driver '%1$s' to driver_override interface of PCI device '%2$s'",
            "Unable to reset PCI device %1$s: %2$s",
            "Failed to reset PCI device: %1$s",
            "Failed to re-attach PCI device: %1$s",
            "Failed to load PCI driver module %1$s: %2$s",
        ),
        "libvirt cannot take the device from its host driver, or reset it",
        "util/virpci.c virPCIDeviceUnbind, virPCIDeviceBindWithDriverOverride, virPCIDeviceReset",
        why="the driver is in use, the device has no reset that leaves its neighbours alone, or "
        "vfio-pci refuses it: the host's log has the reason",
        remedies=("look for the kernel's reason: dmesg | vmm-msi explain",),
    ),
    Text(
        "libvirt-migration",
        Program.LIBVIRT,
        ("cannot migrate a domain with <hostdev mode='subsystem' type='%1$s'>",),
        "a guest with an assigned device cannot be migrated, saved or snapshotted with memory",
        "qemu/qemu_migration.c qemuMigrationSrcIsAllowedHostdev",
        remedies=("remove its devices first: vmm-msi detach {guest} all",),
        older=("cannot migrate a domain with <hostdev mode='subsystem' type='%s'>",),
    ),
    Text(
        "libvirt-no-vfio",
        Program.LIBVIRT,
        (
            "VFIO PCI device assignment is not supported by the host",
            "VFIO device assignment is currently not supported on this system",
        ),
        "the host cannot assign devices: VFIO finds no IOMMU group",
        "qemu/qemu_hostdev.c",
        why="vfio-pci is not loaded, or no SMMU is in use: it is disabled in the firmware or has "
        "no kernel driver",
        remedies=("run modprobe vfio-pci; ls /sys/kernel/iommu_groups must show groups",),
        older=(
            "host doesn't support VFIO PCI passthrough",
            "host doesn't support passthrough of host PCI devices",
        ),
    ),
    Text(
        "libvirt-memory-limit",
        Program.LIBVIRT,
        (
            "cannot limit locked memory of process %1$lld to %2$llu",
            "Failed to adjust locked memory limit",
        ),
        "libvirt cannot raise QEMU's limit on locked memory, which assigned devices require",
        "util/virprocess.c virProcessSetMaxMemLock",
        why="the daemon itself has a lower limit and no CAP_SYS_RESOURCE",
        remedies=("set LimitMEMLOCK=infinity in the unit of libvirtd or virtqemud",),
    ),
    Text(
        "libvirt-vfio-qemu",
        Program.LIBVIRT,
        ("VFIO PCI device assignment is not supported by this QEMU binary",),
        "this QEMU was built without vfio-pci",
        "qemu/qemu_validate.c qemuValidateDomainDeviceDefHostdev",
        remedies=("use a QEMU with CONFIG_VFIO_PCI; docs/support.md lists releases",),
        older=(
            "VFIO PCI device assignment is not supported by this version of QEMU",
            "VFIO PCI device assignment is not supported by this version of qemu",
        ),
    ),
    Text(
        "libvirt-iommu-x86",
        Program.LIBVIRT,
        (
            "IOMMU device: '%1$s' is only supported with Q35 machines",
            "IOMMU device: '%1$s' is only supported with Q35 and ARM Virt machines",
        ),
        "the guest has an <iommu model='{0}'>, which its machine type does not support",
        "qemu/qemu_validate.c qemuValidateDomainDeviceDefIOMMU",
        remedies=("on Arm, use <iommu model='smmuv3'/>, as vmm-msi attach does",),
    ),
    Text(
        "libvirt-iommu-address",
        Program.LIBVIRT,
        ("iommu model '%1$s' can't have address",),
        "a vSMMU has no PCI address of its own: it belongs to the bus that pciBus names",
        "conf/domain_validate.c virDomainIOMMUDefValidate",
        remedies=("remove its <address>, and set <driver pciBus='N'/>",),
    ),
    Text(
        "libvirt-iommufd-limit",
        Program.LIBVIRT,
        ("failed to set memory accounting for iommufd",),
        "the kernel does not let libvirt choose how the memory that QEMU pins is counted",
        "util/viriommufd.c",
        why="the daemon has no CAP_SYS_RESOURCE, or iommufd is used already (EPERM; Linux "
        "iommufd_option_rlimit_mode)",
        remedies=("let the system's daemon start the guest: qemu:///system",),
    ),
    Text(
        "libvirt-one-iommufd",
        Program.LIBVIRT,
        ("only one 'iommufd' element is supported",),
        "the guest has several <iommufd>",
        "conf/domain_conf.c",
        remedies=("keep one: all devices of a guest use one file descriptor of /dev/iommu",),
    ),
    Text(
        "libvirt-duplicate",
        Program.LIBVIRT,
        ("Hostdev already exists in the domain configuration",),
        "the guest has the device already",
        "conf/domain_validate.c virDomainDefHostdevValidate",
        remedies=("see what the guest has: vmm-msi status {guest}",),
    ),
    Text(
        "libvirt-pci-address",
        Program.LIBVIRT,
        (
            (
                "The device at PCI address %1$s cannot be plugged into the PCI controller with "
                "index='%2$d'. It requires a controller that accepts a %3$s."
            ),
            (
                "The device at PCI address %1$s requires hotplug capability, but the PCI "
                "controller with index='%2$d' doesn't support hotplug"
            ),
            "Could not find PCI controller with index '%1$u' required for device at address '%2$s'",
            "No more available PCI slots",
            "pcie-expander-bus controllers are not supported with this machine type",
        ),
        "the guest has no PCI slot for the device at that place",
        "conf/domain_addr.c virDomainPCIAddressFlagsCompatible; qemu/qemu_command.c "
        "qemuBuildDeviceAddressPCIGetBus",
        why="an assigned device needs a root port behind the expander bus of its vSMMU, and that "
        "port has to be free",
        remedies=("let vmm-msi attach choose the port; reserve ports for later: --spare-ports N",),
    ),
)
