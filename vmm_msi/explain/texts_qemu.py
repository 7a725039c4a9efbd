"""QEMU messages about guests with a vSMMU and assigned devices that fail to start, or fault.

Texts and source files are those of QEMU 11.1.
"""

from __future__ import annotations

from vmm_msi.explain.explanation import Program
from vmm_msi.explain.known_text import Text

_ACCEL = "hw/arm/smmuv3-accel.c"
_INFO = f"{_ACCEL} smmuv3_accel_check_hw_compatible"
_ANOTHER = "use another host, or no accelerated vSMMU: vmm-msi detach {guest} {device}"
_GROUP = (
    "every device of an IOMMU group must be bound to vfio-pci or have no driver, and none of them "
    "may be in another guest"
)

TEXTS: tuple[Text, ...] = (
    Text(
        "qemu-vdevice",
        Program.QEMU,
        ("IOMMU_VDEVICE_ALLOC failed",),
        "the kernel refuses to put the device behind the vSMMU (no vDEVICE)",
        "backends/iommufd.c iommufd_backend_alloc_vdev",
        cases={
            "Invalid argument": "the device is behind another pSMMU than the one of the vSMMU "
            "(EINVAL; Linux iommufd_vdevice_alloc_ioctl)",
            "File exists": "the device already has a vDEVICE, or its guest StreamID is in use "
            "(EEXIST; Linux iommufd_vdevice_alloc_ioctl)",
            "Operation not supported": "the device has several StreamIDs (EOPNOTSUPP; Linux "
            "arm_vsmmu_vdevice_init)",
        },
        remedies=(
            (
                "use a vSMMU for each pSMMU, as vmm-msi attach does; vmm-msi status {guest} shows "
                "the vSMMU of each device"
            ),
        ),
    ),
    Text(
        "qemu-viommu",
        Program.QEMU,
        ("IOMMU_VIOMMU_ALLOC failed", "Unable to alloc vIOMMU: hiodi devid 0x%x"),
        "the kernel refuses to create a vSMMU for this device's pSMMU",
        f"backends/iommufd.c iommufd_backend_alloc_viommu, {_ACCEL}",
        cases={
            "Operation not supported": "the pSMMU cannot nest, or neither it (S2FWB) nor the PCI "
            "host (CANWBS) stops a guest from disabling cacheability, or the kernel was built "
            "without CONFIG_ARM_SMMU_V3_IOMMUFD (EOPNOTSUPP; Linux arm_smmu_get_viommu_size)",
            "Invalid argument": "the S2 belongs to another pSMMU, or is not a nest parent (EINVAL; "
            "Linux arm_vsmmu_init, iommufd_viommu_alloc_ioctl)",
        },
        remedies=("use a kernel with CONFIG_ARM_SMMU_V3_IOMMUFD=y", _ANOTHER),
    ),
    Text(
        "qemu-hwpt",
        Program.QEMU,
        ("Failed to allocate hwpt", "Failed to get hardware info"),
        "the kernel refuses to create a nest parent (stage 2) for a vSMMU",
        "backends/iommufd.c iommufd_backend_alloc_hwpt",
        cases={
            "Operation not supported": "the pSMMU does not have both stages (EOPNOTSUPP; Linux "
            "arm_smmu_domain_alloc_paging_flags)",
            "Invalid argument": "the S2 belongs to another pSMMU (EINVAL)",
        },
        remedies=(_ANOTHER,),
    ),
    Text(
        "qemu-install-ste",
        Program.QEMU,
        (
            "Invalid STE config for sid 0x%x",
            "Device 0x%x: Failed to install STE",
            "Failed to install all STEs properly",
            "Unable to attach the default HW pagetable: hiodi devid 0x%x",
            "Failed to attach GBPA hwpt %u for hiodi devid %u",
        ),
        "the guest's stage 1 was not installed in the pSMMU: the device's MSIs and DMA are aborted",
        f"{_ACCEL} smmuv3_accel_install_ste",
        why="the kernel rejects the guest's stream table entry, or the device has no vDEVICE "
        "(ENOENT)",
        stage=1,
        remedies=("look for the cause in the host's log: dmesg | vmm-msi explain",),
    ),
    Text(
        "qemu-events",
        Program.QEMU,
        (
            "IOMMU_VEVENTQ_ALLOC failed",
            "vEVENTQ(type %u id %u): read failed (%m)",
            "vEVENTQ(type %u id %u): overflowed",
            "vEVENTQ(type %u id %u): lost %u event(s)",
        ),
        "events of the vSMMU were lost: the guest does not see its stage 1 faults",
        f"{_ACCEL} smmuv3_accel_event_read",
        why="more faults than the queue holds, usually of one device that faults repeatedly",
        remedies=("fix the fault that the guest's own log shows: vmm-msi explain --in-guest",),
    ),
    Text(
        "qemu-invalidate",
        Program.QEMU,
        ("IOMMU_HWPT_INVALIDATE failed: total %d entries, processed %d entries",),
        "an invalidation of the guest failed: {1} of {0} commands were processed",
        "backends/iommufd.c iommufd_backend_invalidate_cache",
        why="the guest sent a command for a StreamID without a device, or a command that the "
        "kernel does not forward",
        remedies=("use a guest kernel that uses only the StreamIDs behind its own vSMMU",),
    ),
    Text(
        "qemu-iommufd-missing",
        Program.QEMU,
        ("/dev/iommu does not exist (is your kernel config missing CONFIG_IOMMUFD?)",),
        "the host has no /dev/iommu",
        "backends/iommufd.c iommufd_backend_connect",
        remedies=(
            (
                "run modprobe iommufd; if the module does not exist, use a kernel with "
                "CONFIG_IOMMUFD, CONFIG_VFIO_DEVICE_CDEV and CONFIG_ARM_SMMU_V3_IOMMUFD"
            ),
        ),
    ),
    Text(
        "qemu-iommufd-open",
        Program.QEMU,
        ("Could not open '/dev/iommu'",),
        "QEMU cannot open /dev/iommu",
        "backends/iommufd.c iommufd_backend_connect",
        cases={
            "Permission denied": "its user has no permission, or SELinux, AppArmor or the devices "
            "cgroup forbids it",
            "No such file": "the kernel was built without CONFIG_IOMMUFD, or the module iommufd is "
            "not loaded",
        },
        remedies=("let libvirt open it: <iommufd enabled='yes'/> without fdgroup",),
    ),
    Text(
        "qemu-vfio-cdev",
        Program.QEMU,
        (
            "failed to find vfio-dev/vfioX/dev",
            "(is your kernel config missing CONFIG_VFIO_DEVICE_CDEV?)",
        ),
        "the device has no node in /dev/vfio/devices, which iommufd requires",
        "hw/vfio/device.c, hw/vfio/iommufd.c iommufd_cdev_getfd",
        why="the kernel was built without CONFIG_VFIO_DEVICE_CDEV, or the device is not bound to "
        "vfio-pci",
        remedies=(
            "bind it to vfio-pci (virsh nodedev-detach), on a kernel with CONFIG_VFIO_DEVICE_CDEV",
        ),
    ),
    Text(
        "qemu-bind",
        Program.QEMU,
        ("error bind device fd=%d to iommufd=%d",),
        "the kernel refuses to bind the device to this iommufd",
        "hw/vfio/iommufd.c iommufd_cdev_connect_and_bind",
        cases={
            "Operation not permitted": "its MSIs are not isolated and iommufd."
            "allow_unsafe_interrupts is 0, or another file descriptor owns its IOMMU group (EPERM; "
            "Linux iommufd_device_bind)",
            "Device or resource busy": "a host driver is bound to a device of its IOMMU group "
            "(EBUSY; Linux iommu_device_claim_dma_owner)",
            "Invalid argument": "the firmware requires a 1:1 mapping for it (EINVAL; see the "
            "host's log)",
        },
        remedies=(_GROUP,),
    ),
    Text(
        "qemu-attach-hwpt",
        Program.QEMU,
        ("[iommufd=%d] error attach %s (%d) pasid %d to id=%d",),
        "the kernel refuses to attach {1} to its translation",
        "hw/vfio/iommufd.c iommufd_cdev_attach_ioas_hwpt",
        cases={
            "Invalid argument": "another device of its IOMMU group has a different translation, or "
            "it is behind another pSMMU (EINVAL)",
            "Address already in use": "guest RAM overlaps a reserved region of the device, such as "
            "the SW MSI window (EADDRINUSE; Linux iopt_table_enforce_dev_resv_regions)",
            "No such file": "a device of its IOMMU group has no vDEVICE (ENOENT)",
        },
        remedies=("assign all devices of the group behind one vSMMU, or only this one",),
    ),
    Text(
        "qemu-emulated-endpoint",
        Program.QEMU,
        ("Emulated endpoint devices are not allowed when using arm-smmuv3,accel=on",),
        "an emulated device is on the expander bus of an accelerated vSMMU",
        f"{_ACCEL} smmuv3_accel_supports_as, smmuv3_accel_find_add_as",
        why="emulated devices do not use the pSMMU, so only assigned devices may be there",
        remedies=("move it to another bus: <address bus='0x00'/>, or a root port of pcie.0",),
    ),
    Text(
        "qemu-without-iommufd",
        Program.QEMU,
        (
            (
                "vfio-pci endpoint devices without an iommufd backend not allowed when using "
                "arm-smmuv3,accel=on"
            ),
        ),
        "an assigned device behind an accelerated vSMMU does not use iommufd",
        f"{_ACCEL} smmuv3_accel_find_add_as",
        remedies=("add <iommufd enabled='yes'/>, as vmm-msi attach {guest} {device} does",),
    ),
    Text(
        "qemu-cold-plug",
        Program.QEMU,
        (
            (
                "arm-smmuv3 accel=on with 'auto' properties requires at least one cold-plugged "
                "VFIO device"
            ),
            "arm-smmuv3 cmdqv=on requires at least one cold-plugged VFIO device",
        ),
        "a vSMMU derives its properties from a pSMMU, but no device links it to one",
        f"{_ACCEL} smmuv3_accel_reset",
        remedies=(
            "attach a device behind it before starting the guest",
            "or set all its properties: --vsmmu ats=…,ril=…,ssidsize=…,oas=…",
        ),
    ),
    Text(
        "qemu-accel-machine",
        Program.QEMU,
        (
            "SMMUv3 with accel=on not supported for DT",
            "SMMUv3 accel=on requires KVM with kernel-irqchip=on support",
            "Only stage1 is supported for SMMUv3 with accel=on",
            "SMMUv3 device only supported with pcie.0 for DT",
        ),
        "the machine does not support an accelerated vSMMU",
        "hw/arm/virt.c",
        why="it requires KVM, an in-kernel GIC, and ACPI: the IORT describes the MSI window to the "
        "guest",
        remedies=(
            (
                "use <domain type='kvm'>, <features><acpi/><gic version='3'/></features> and "
                "<os firmware='efi'>"
            ),
        ),
    ),
    Text(
        "qemu-accel-property",
        Program.QEMU,
        (
            "ril can only be disabled if accel=on",
            "ats can only be enabled if accel=on",
            "oas must be 44 bits when accel=off",
            "ssidsize can only be greater than 0 bits if accel=on",
            "cmdqv can only be enabled if accel=on",
        ),
        "a property of the vSMMU requires accel=on",
        "hw/arm/smmuv3.c smmu_validate_property",
        remedies=("use <driver accel='on'/>, as vmm-msi attach {guest} {device} --vsmmu … does",),
    ),
    Text(
        "qemu-migration",
        Program.QEMU,
        (
            "Migration not supported with SMMUv3 accelerator mode enabled",
            "Migration is currently not supported with vIOMMU enabled",
        ),
        "a guest with an accelerated vSMMU cannot be migrated, saved or snapshotted with memory",
        "hw/arm/smmuv3.c",
        remedies=("remove its devices first: vmm-msi detach {guest} all",),
    ),
    Text(
        "qemu-host-differs",
        Program.QEMU,
        (
            "Host SMMUv3 SIDSIZE not compatible (host=%u, QEMU=%u)",
            "Host SMMUv3 Stream Table format mismatch (host STLEVEL=%u, QEMU STLEVEL=%u)",
            "Host SMMUv3 doesn't support Little-endian translation table",
            "Host SMMUv3 doesn't support AArch64 translation table format",
            "Wrong data type (%d) for Host SMMUv3 device info",
        ),
        "the pSMMU lacks a feature that QEMU's vSMMU always has",
        _INFO,
        remedies=(_ANOTHER,),
    ),
    Text(
        "qemu-host-ssidsize",
        Program.QEMU,
        ("Host SMMUv3 SSIDSIZE not compatible (host=%u, QEMU=%u)",),
        "the vSMMU has {1} SubstreamID bits, but the pSMMU has {0}",
        _INFO,
        remedies=("vmm-msi attach {guest} {device} --vsmmu ssidsize={0}",),
    ),
    Text(
        "qemu-host-ril",
        Program.QEMU,
        ("Host SMMUv3 doesn't support Range Invalidation",),
        "the vSMMU has range invalidation, but the pSMMU does not",
        _INFO,
        remedies=("vmm-msi attach {guest} {device} --vsmmu ril=off",),
    ),
    Text(
        "qemu-host-ats",
        Program.QEMU,
        ("Host SMMUv3 doesn't support Address Translation Services",),
        "the vSMMU has ATS, but the pSMMU does not",
        _INFO,
        remedies=("vmm-msi attach {guest} {device} --vsmmu ats=off",),
    ),
    Text(
        "qemu-host-oas",
        Program.QEMU,
        ("Host SMMUv3 supports only %d-bit IPA, but the vSMMU OAS implies %d-bit IPA",),
        "the guest may use {1}-bit IPAs, but the pSMMU supports {0} bits",
        _INFO,
        remedies=("vmm-msi attach {guest} {device} --vsmmu oas=44",),
    ),
    Text(
        "qemu-host-granule",
        Program.QEMU,
        (
            "Host SMMUv3 doesn't support 4K translation granule",
            "Host SMMUv3 doesn't support 16K translation granule",
            "Host SMMUv3 doesn't support 64K translation granule",
        ),
        "the pSMMU lacks a page size that QEMU's vSMMU has",
        _INFO,
        remedies=(_ANOTHER,),
    ),
    Text(
        "qemu-no-device",
        Program.QEMU,
        ("no such host device",),
        "the host has no device at that address",
        "hw/vfio/pci.c",
        why="its address changed, or its driver or its virtual functions are missing",
        remedies=("look up its address with lspci -D",),
    ),
    Text(
        "qemu-no-group",
        Program.QEMU,
        ("no iommu_group found",),
        "the device has no IOMMU group: no SMMU translates its DMA",
        "hw/vfio/container-legacy.c",
        why="the SMMU is disabled in the firmware or has no kernel driver, or the firmware's "
        "tables do not assign the device to it",
        remedies=("look up the SMMU of each device with vmm-msi topology show",),
    ),
    Text(
        "qemu-group-busy",
        Program.QEMU,
        ("error getting device from group %d",),
        "VFIO refuses to open a device of IOMMU group {0}",
        "hw/vfio/container-legacy.c vfio_device_get",
        cases={
            "Device or resource busy": "another process has it open, such as another guest",
            "No such device": "it is not bound to vfio-pci",
        },
        remedies=(_GROUP,),
    ),
    Text(
        "qemu-group-viable",
        Program.QEMU,
        (
            "group %d is not viable",
            "VFIO group is not viable",
            "Please ensure all devices within the iommu_group are bound to their vfio bus driver.",
            (
                "Verify all devices in group %d are bound to vfio-<bus> or pci-stub and not "
                "already in use"
            ),
        ),
        "a host driver is bound to a device of the IOMMU group",
        "hw/vfio/container-legacy.c vfio_group_get",
        why=_GROUP,
        remedies=(
            (
                "bind the others to vfio-pci as well: ls /sys/bus/pci/devices/ADDRESS/iommu_group/"
                "devices, virsh nodedev-detach"
            ),
        ),
    ),
    Text(
        "qemu-container",
        Program.QEMU,
        (
            "failed to setup container for group %d: ",
            "Failed to set iommu for container",
            "Failed to set group container",
        ),
        "VFIO cannot set up a translation for the IOMMU group",
        "hw/vfio/container-legacy.c vfio_container_connect",
        cases={
            "Operation not permitted": "its MSIs are not isolated (EPERM): the host's log has "
            "'No interrupt remapping support'",
            "Cannot allocate memory": "QEMU would exceed its limit on locked memory",
        },
        remedies=("look for the kernel's reason: dmesg | vmm-msi explain",),
    ),
    Text(
        "qemu-map-failed",
        Program.QEMU,
        (
            "vfio_container_dma_map(%p, 0x%lx, 0x%lx, %p) = %d (%s)",
            "IOMMU_IOAS_MAP failed: %m, PCI BAR?",
            "VFIO_MAP_DMA failed",
            "vfio: DMA mapping failed, unable to continue",
        ),
        "guest memory could not be mapped in stage 2",
        "hw/vfio/listener.c vfio_container_region_add",
        cases={
            "Cannot allocate memory": "QEMU would exceed its limit on locked memory (ENOMEM)",
            "Invalid argument": "it overlaps a reserved region of the device, such as the SW MSI "
            "window 0x8000000-0x80fffff (EINVAL; Linux iopt_check_iova)",
            "Bad address": "it is a BAR of another device (EFAULT): only peer-to-peer DMA is lost",
        },
        missing="S2: the guest's RAM",
        stage=2,
        remedies=("for ENOMEM, set <memtune><hard_limit/></memtune> to the RAM plus 1 GiB",),
    ),
    Text(
        "qemu-msi-enable",
        Program.QEMU,
        (
            "vfio: failed to enable vectors, %s",
            "vfio: Error: Failed to setup MSI fds: %s",
            "vfio: Error: Failed to enable MSI",
            "vfio: failed to enable MSI-X, %s",
        ),
        "the host's kernel refuses to enable the device's MSIs",
        "hw/vfio/pci.c vfio_msix_enable, vfio_msi_enable",
        cases={
            "No space left on device": "the ITS has no free event or LPI, or the device is not "
            "attached to a translation (ENOSPC)",
            "Value too large": "the 65th distinct doorbell of one iommufd file descriptor: it has "
            "64 slots (EOVERFLOW; Linux iommufd_sw_msi_get_map)",
            "Cannot allocate memory": "the kernel found no address for its doorbell (ENOMEM)",
        },
        remedies=("look for the kernel's reason: dmesg | vmm-msi explain",),
    ),
    Text(
        "qemu-two-iommus",
        Program.QEMU,
        (
            "virt machine already has %s set. Doesn't support incompatible iommus",
            "virt machine does not support multiple IOMMUs",
        ),
        "a machine-wide vSMMU and a vSMMU of an expander bus cannot be combined",
        "hw/arm/virt.c",
        remedies=(
            "give each <iommu> a <driver pciBus='N'/>, as vmm-msi attach does, or use only one",
        ),
    ),
    Text(
        "qemu-smmu-place",
        Program.QEMU,
        (
            "SMMU is not attached to any PCI bus!",
            (
                "SMMU should be attached to a default PCIe root complex(pcie.0) or a pxb-pcie "
                "based root complex"
            ),
        ),
        "a vSMMU is on a bus that is not a root bus",
        "hw/arm/smmu-common.c smmu_base_realize",
        remedies=("set pciBus of its <driver> to the index of a pcie-expander-bus",),
    ),
)
