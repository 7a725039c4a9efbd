"""QEMU messages about guests with a vSMMU and assigned devices that fail to start, or fault.

Texts and source files are those of QEMU 11.1.
"""

from __future__ import annotations

from vmm_msi.explain.explanation import Program
from vmm_msi.explain.known_text import Case, Text

_ACCEL = "hw/arm/smmuv3-accel.c"
_INFO = f"{_ACCEL} smmuv3_accel_check_hw_compatible"
_ANOTHER = "use another host, or no accelerated vSMMU: vmm-msi detach {guest} {device}"

TEXTS: tuple[Text, ...] = (
    Text(
        "qemu-vdevice",
        Program.QEMU,
        ("IOMMU_VDEVICE_ALLOC failed",),
        "the kernel refuses to put the device behind the vSMMU (no vDEVICE)",
        "backends/iommufd.c iommufd_backend_alloc_vdev",
        cases={
            "Invalid argument": Case(
                "the device is behind another pSMMU than the one of the vSMMU "
                "(EINVAL; Linux iommufd_vdevice_alloc_ioctl)"
            ),
            "File exists": Case(
                "the device already has a vDEVICE, or its guest StreamID is in use "
                "(EEXIST; Linux iommufd_vdevice_alloc_ioctl)"
            ),
            "Operation not supported": Case(
                "the device has several StreamIDs (EOPNOTSUPP; Linux arm_vsmmu_vdevice_init)"
            ),
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
            "Operation not supported": Case(
                "the pSMMU cannot nest, or neither it (S2FWB) nor the PCI "
                "host (CANWBS) stops a guest from disabling cacheability, or the kernel was built "
                "without CONFIG_ARM_SMMU_V3_IOMMUFD (EOPNOTSUPP; Linux arm_smmu_get_viommu_size)"
            ),
            "Invalid argument": Case(
                "the S2 belongs to another pSMMU, or is not a nest parent (EINVAL; "
                "Linux arm_vsmmu_init, iommufd_viommu_alloc_ioctl)"
            ),
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
            "Operation not supported": Case(
                "the pSMMU does not have both stages (EOPNOTSUPP; Linux "
                "arm_smmu_domain_alloc_paging_flags)"
            ),
            "Invalid argument": Case("the S2 belongs to another pSMMU (EINVAL)"),
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
        (
            "IOMMU_HWPT_INVALIDATE failed: total %d entries, processed %d entries",
            (
                "IOMMU_HWPT_INVALIDATE succeed but with unprocessed entries: total %d entries, "
                "processed %d entries. Kernel BUG?!"
            ),
        ),
        "an invalidation of the guest failed: {1} of {0} commands were processed",
        "backends/iommufd.c iommufd_backend_invalidate_cache",
        why="the guest sent a command for a StreamID without a device, or a command that the "
        "kernel does not forward",
        remedies=("use a guest kernel that uses only the StreamIDs behind its own vSMMU",),
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
            "Migration is disabled for VFIO device",
            "VFIO_MIGRATION_STOP_COPY is not supported",
            "VFIO migration is not supported with postcopy migration",
            "VFIO migration is not supported with background snapshot",
            "VFIO device doesn't support device and IOMMU dirty tracking",
            "Multiple VFIO devices migration is supported only if all of them support P2P",
        ),
        "a guest with an accelerated vSMMU, or with a device that cannot be migrated, cannot be "
        "migrated, saved or snapshotted with memory",
        "hw/arm/smmuv3.c, hw/vfio/migration.c",
        remedies=("remove its devices first: vmm-msi detach {guest} all",),
        older=(
            "VFIO migration is not supported in kernel",
            "VFIO device doesn't support migration",
        ),
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
        older=("differs in Range Invalidation support",),
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
    Text(
        "qemu-set-viommu",
        Program.QEMU,
        ("Failed to set vIOMMU: ",),
        "QEMU cannot put the device behind its vIOMMU",
        "hw/vfio/pci.c vfio_pci_realize",
        remedies=("look for the kernel's reason: dmesg | vmm-msi explain",),
    ),
    Text(
        "qemu-cmdqv",
        Program.QEMU,
        ("IOMMU_HW_QUEUE_ALLOC failed", "IOMMUFD vIOMMU mmap failed"),
        "the kernel does not give the guest's vSMMU command queues of its own (cmdqv=on)",
        "backends/iommufd.c iommufd_backend_alloc_hw_queue, iommufd_backend_viommu_mmap",
        why="the pSMMU has no CMDQV extension, or all of its virtual interfaces are in use",
        remedies=("attach without it: vmm-msi attach {guest} {device} --vsmmu cmdqv=off",),
    ),
    Text(
        "qemu-cmdqv-unplug",
        Program.QEMU,
        (
            (
                "CMDQV is active: removing the device that established the viommu association "
                "would break the guest CMDQV"
            ),
        ),
        "the first device behind a vSMMU with cmdqv=on cannot be removed while the guest runs",
        f"{_ACCEL} smmuv3_accel_unset_iommu_device",
        remedies=("stop the guest before you detach it: vmm-msi detach {guest} {device}",),
    ),
    Text(
        "qemu-oas-value",
        Program.QEMU,
        (
            (
                "QEMU SMMUv3 model only implements auto, 44 bit, or 48 bit OAS. Other OasMode "
                "values are not supported."
            ),
        ),
        "the vSMMU has a value of oas that QEMU does not support",
        "hw/arm/smmuv3.c smmu_validate_property",
        remedies=("vmm-msi attach {guest} {device} --vsmmu oas=48, or oas=44",),
    ),
    Text(
        "qemu-smmu-bypass",
        Program.QEMU,
        ("Bypass option cannot be set for SMMUv3 associated PCIe RC",),
        "the bus of a vSMMU has bypass_iommu=on, so its devices would not be behind the vSMMU",
        "hw/arm/smmu-common.c smmu_base_realize",
        remedies=("remove bypass_iommu from the expander bus or from the machine",),
    ),
    Text(
        "qemu-guest-substreams",
        Program.QEMU,
        (
            (
                "SMMUv3: multiple S1 context descriptors require SubstreamID support. Configure "
                "ssidsize > 0 (requires accel=on)"
            ),
        ),
        "the guest uses PASIDs (several context descriptors), but its vSMMU has no SubstreamIDs: "
        "the device's MSIs and DMA are aborted",
        "hw/arm/smmuv3.c decode_ste",
        remedies=("vmm-msi attach {guest} {device} --vsmmu ssidsize=N",),
        older=("SMMUv3 does not support multiple context descriptors yet",),
    ),
    Text(
        "qemu-guest-ste",
        Program.QEMU,
        (
            "SMMUv3 S1 stalling fault model not allowed yet",
            "SMMUv3 Stall not implemented!",
            "SMMUv3 AArch32 tables not supported",
            "SMMUv3 S1 used but not supported.",
            "SMMUv3 S2 used but not supported.",
            "SMMUv3 STE stage 2 config not valid!",
        ),
        "the guest's SMMU driver uses a feature that QEMU's emulated SMMUv3 lacks: the device's "
        "MSIs and DMA are aborted",
        "hw/arm/smmuv3.c decode_ste, decode_ste_s2_cfg, decode_cd",
        why="it is a driver other than Linux's, or one that does not check the features",
        remedies=("use Linux in the guest, or no vSMMU",),
        older=("SMMUv3 does not support stage 2 yet",),
    ),
    Text(
        "qemu-dev-iotlb",
        Program.QEMU,
        ("SMMUv3 does not support dev-iotlb yet",),
        "a device with ATS (device IOTLB) is behind an emulated SMMUv3, which has none",
        "hw/arm/smmuv3.c smmuv3_notify_flag_changed",
        remedies=("remove ats='on' from the device's <driver>, or use vhost without ATS",),
    ),
    Text(
        "qemu-device-ats",
        Program.QEMU,
        (
            "vfio-pci: ATS requested but not supported by kernel",
            "vfio-pci: ats=on requested, but host device has no ATS extended capability",
            "vfio-pci: host kernel reports ATS unsupported; ATS capability will be masked",
        ),
        "the guest does not see ATS in the device: its DMA and its MSIs work without",
        "hw/vfio/pci.c",
        why="the device, its root port, the IORT or the host's SMMU has no ATS",
        remedies=("vmm-msi attach {guest} {device} --vsmmu ats=off",),
    ),
    Text(
        "qemu-iommu-taken",
        Program.QEMU,
        ("An iommu is already attached to this bus",),
        "two IOMMUs are on one root bus",
        "hw/pci/pci.c",
        remedies=("give each <iommu> an expander bus of its own, as vmm-msi attach does",),
    ),
    Text(
        "qemu-virtio-iommu-pages",
        Program.QEMU,
        (
            ("reports a page size mask 0x%lx incompatible with currently supported mask 0x%lx"),
            "does not support frozen granule 0x%llx",
        ),
        "the host's SMMU lacks the page size that the guest's virtio-iommu offers",
        "hw/virtio/virtio-iommu.c virtio_iommu_set_iommu_device",
        why="the host's pages are larger (64K) than the guest's, or the device was hot-plugged "
        "after the guest chose a page size",
        remedies=(
            "set granule of the virtio-iommu to the host's page size, or use one page size in both",
            "or use an accelerated vSMMU: vmm-msi attach {guest} {device}",
        ),
        older=(
            "virtio-iommu page mask 0x%lx is incompatible with mask 0x%lx",
            "virtio-iommu page mask 0x%lx does not match 0x%lx",
        ),
    ),
    Text(
        "qemu-virtio-iommu-place",
        Program.QEMU,
        (
            "VIRTIO-IOMMU is not attached to any PCI bus!",
            "virtio-iommu-pci must be plugged on the root bus",
            "Check your machine implements a hotplug handler for the virtio-iommu-pci device",
        ),
        "a virtio-iommu is not on the machine's root bus, or the machine has no room for one",
        "hw/virtio/virtio-iommu-pci.c virtio_iommu_pci_realize",
        remedies=("put it on bus 0 of a virt machine, or use a vSMMU",),
    ),
    Text(
        "qemu-pasid",
        Program.QEMU,
        ("vfio: Placing PASID capability at offset 0x%x failed",),
        "the guest does not see PASID in the device: there is no room for the capability",
        "hw/vfio/pci.c",
        remedies=("vmm-msi attach {guest} {device} --vsmmu ssidsize=0",),
    ),
)
