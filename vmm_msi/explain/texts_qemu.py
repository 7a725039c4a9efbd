"""What QEMU says when a guest with a vSMMU and assigned devices does not start, or faults.

Texts are those of QEMU 11.1, sources below its top folder.
"""

from __future__ import annotations

from vmm_msi.explain.explanation import Program
from vmm_msi.explain.known_text import Text

_ACCEL = "hw/arm/smmuv3-accel.c"
_INFO = f"{_ACCEL} smmuv3_accel_check_hw_compatible"
_ANOTHER = "another host, or no accelerated vSMMU: vmm-msi detach {guest} {device}"
_GROUP = (
    "every device of an IOMMU group has to be bound to vfio-pci, or to nothing, and none of them "
    "may be in another guest"
)

TEXTS: tuple[Text, ...] = (
    Text(
        "qemu-vdevice",
        Program.QEMU,
        ("IOMMU_VDEVICE_ALLOC failed",),
        "the kernel does not let the vSMMU have the device",
        "backends/iommufd.c iommufd_backend_alloc_vdev",
        cases={
            "Invalid argument": "the device is behind another pSMMU than the vSMMU stands for "
            "(EINVAL; Linux iommufd_vdevice_alloc_ioctl)",
            "File exists": "the device has a vDEVICE already, or its guest StreamID is taken "
            "(EEXIST; Linux iommufd_vdevice_alloc_ioctl)",
            "Operation not supported": "the device has several StreamIDs (EOPNOTSUPP; Linux "
            "arm_vsmmu_vdevice_init)",
        },
        remedies=(
            (
                "a vSMMU for each pSMMU, as vmm-msi attach makes them; vmm-msi status {guest} "
                "shows which device is behind which"
            ),
        ),
    ),
    Text(
        "qemu-viommu",
        Program.QEMU,
        ("IOMMU_VIOMMU_ALLOC failed", "Unable to alloc vIOMMU: hiodi devid 0x%x"),
        "the kernel makes no vSMMU for this device's pSMMU",
        f"backends/iommufd.c iommufd_backend_alloc_viommu, {_ACCEL}",
        cases={
            "Operation not supported": "the pSMMU cannot nest, or neither it (S2FWB) nor the PCI "
            "host (CANWBS) keeps a guest from turning cacheability off, or the kernel was built "
            "without CONFIG_ARM_SMMU_V3_IOMMUFD (EOPNOTSUPP; Linux arm_smmu_get_viommu_size)",
            "Invalid argument": "the S2 is that of another pSMMU, or no nesting parent (EINVAL; "
            "Linux arm_vsmmu_init, iommufd_viommu_alloc_ioctl)",
        },
        remedies=("a kernel with CONFIG_ARM_SMMU_V3_IOMMUFD=y", _ANOTHER),
    ),
    Text(
        "qemu-hwpt",
        Program.QEMU,
        ("Failed to allocate hwpt", "Failed to get hardware info"),
        "the kernel makes no stage 2 that a vSMMU can nest on",
        "backends/iommufd.c iommufd_backend_alloc_hwpt",
        cases={
            "Operation not supported": "the pSMMU does not have both stages (EOPNOTSUPP; Linux "
            "arm_smmu_domain_alloc_paging_flags)",
            "Invalid argument": "the S2 is that of another pSMMU (EINVAL)",
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
        "the stage 1 that the guest wrote into its vSMMU did not go into the pSMMU: the device's "
        "MSIs and DMA are aborted",
        f"{_ACCEL} smmuv3_accel_install_ste",
        why="the guest's stream table entry has what the kernel does not pass on, or the device "
        "has no vDEVICE (ENOENT)",
        stage=1,
        remedies=("the host's log (dmesg | vmm-msi explain) has the cause where it has one",),
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
        "events of the vSMMU did not reach the guest: it is not told of its stage 1 faults",
        f"{_ACCEL} smmuv3_accel_event_read",
        why="more faults than the queue holds, mostly of one device that faults again and again",
        remedies=("mend the fault that the guest's own log shows: vmm-msi explain --in-guest",),
    ),
    Text(
        "qemu-invalidate",
        Program.QEMU,
        ("IOMMU_HWPT_INVALIDATE failed: total %d entries, processed %d entries",),
        "an invalidation of the guest was not carried out: of {0} commands, {1} were",
        "backends/iommufd.c iommufd_backend_invalidate_cache",
        why="the guest sent a command for a StreamID without a device, or one the kernel does not "
        "pass on",
        remedies=("a guest kernel that uses the StreamIDs behind its own vSMMU",),
    ),
    Text(
        "qemu-iommufd-missing",
        Program.QEMU,
        ("/dev/iommu does not exist (is your kernel config missing CONFIG_IOMMUFD?)",),
        "the host has no /dev/iommu",
        "backends/iommufd.c iommufd_backend_connect",
        remedies=(
            (
                "modprobe iommufd; where there is no such module, a kernel with CONFIG_IOMMUFD, "
                "CONFIG_VFIO_DEVICE_CDEV and CONFIG_ARM_SMMU_V3_IOMMUFD"
            ),
        ),
    ),
    Text(
        "qemu-iommufd-open",
        Program.QEMU,
        ("Could not open '/dev/iommu'",),
        "QEMU may not open /dev/iommu",
        "backends/iommufd.c iommufd_backend_connect",
        cases={
            "Permission denied": "its user, or its confinement by SELinux, AppArmor or devices "
            "cgroup, may not",
            "No such file": "the kernel was built without CONFIG_IOMMUFD, or the module iommufd is "
            "not loaded",
        },
        remedies=("have libvirt open it: <iommufd enabled='yes'/> and no fdgroup",),
    ),
    Text(
        "qemu-vfio-cdev",
        Program.QEMU,
        (
            "failed to find vfio-dev/vfioX/dev",
            "(is your kernel config missing CONFIG_VFIO_DEVICE_CDEV?)",
        ),
        "the device has no node of its own in /dev/vfio/devices, which iommufd needs",
        "hw/vfio/device.c, hw/vfio/iommufd.c iommufd_cdev_getfd",
        why="the kernel was built without CONFIG_VFIO_DEVICE_CDEV, or the device is not bound to "
        "vfio-pci",
        remedies=("bind it to vfio-pci (virsh nodedev-detach); have CONFIG_VFIO_DEVICE_CDEV",),
    ),
    Text(
        "qemu-bind",
        Program.QEMU,
        ("error bind device fd=%d to iommufd=%d",),
        "the kernel does not let this iommufd have the device",
        "hw/vfio/iommufd.c iommufd_cdev_connect_and_bind",
        cases={
            "Operation not permitted": "its MSIs are not isolated and iommufd."
            "allow_unsafe_interrupts is 0, or another file descriptor has its IOMMU group (EPERM; "
            "Linux iommufd_device_bind)",
            "Device or resource busy": "a driver of the host has a device of its IOMMU group "
            "(EBUSY; Linux iommu_device_claim_dma_owner)",
            "Invalid argument": "the firmware wants memory mapped 1:1 for it (EINVAL; the host's "
            "log says so)",
        },
        remedies=(_GROUP,),
    ),
    Text(
        "qemu-attach-hwpt",
        Program.QEMU,
        ("[iommufd=%d] error attach %s (%d) pasid %d to id=%d",),
        "the kernel does not attach {1} to its translation",
        "hw/vfio/iommufd.c iommufd_cdev_attach_ioas_hwpt",
        cases={
            "Invalid argument": "another device of its IOMMU group has another translation, or it "
            "is behind another pSMMU (EINVAL)",
            "Address already in use": "guest RAM covers a reserved region of the device, such as "
            "the SW MSI window (EADDRINUSE; Linux iopt_table_enforce_dev_resv_regions)",
            "No such file": "a device of its IOMMU group has no vDEVICE (ENOENT)",
        },
        remedies=("assign all devices of the group behind one vSMMU, or none but this one",),
    ),
    Text(
        "qemu-emulated-endpoint",
        Program.QEMU,
        ("Emulated endpoint devices are not allowed when using arm-smmuv3,accel=on",),
        "an emulated device is on the expander bus of an accelerated vSMMU",
        f"{_ACCEL} smmuv3_accel_supports_as, smmuv3_accel_find_add_as",
        why="what QEMU emulates does not pass through the pSMMU: assigned devices alone may be",
        remedies=("put it on another bus: <address bus='0x00'/>, or a root port of pcie.0",),
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
        "an assigned device is behind an accelerated vSMMU and does not use iommufd",
        f"{_ACCEL} smmuv3_accel_find_add_as",
        remedies=("<iommufd enabled='yes'/>, as vmm-msi attach {guest} {device} writes it",),
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
        "a vSMMU without a device takes its properties from the pSMMU, and knows of none",
        f"{_ACCEL} smmuv3_accel_reset",
        remedies=(
            "attach a device behind it before the start",
            "or tell it all properties: --vsmmu ats=…,ril=…,ssidsize=…,oas=…",
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
        "the machine does not go with an accelerated vSMMU",
        "hw/arm/virt.c",
        why="it needs KVM, a GIC of the kernel, and ACPI: the guest learns of the window from the "
        "IORT",
        remedies=(
            (
                "<domain type='kvm'>, <features><acpi/><gic version='3'/></features>, "
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
        "a property of the vSMMU goes with accel=on alone",
        "hw/arm/smmuv3.c smmu_validate_property",
        remedies=("<driver accel='on'/>, as vmm-msi attach {guest} {device} --vsmmu … writes it",),
    ),
    Text(
        "qemu-migration",
        Program.QEMU,
        (
            "Migration not supported with SMMUv3 accelerator mode enabled",
            "Migration is currently not supported with vIOMMU enabled",
        ),
        "a guest with an accelerated vSMMU cannot be migrated or saved, memory snapshots included",
        "hw/arm/smmuv3.c",
        remedies=("take its devices out first: vmm-msi detach {guest} all",),
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
        "the pSMMU lacks what QEMU's vSMMU always has",
        _INFO,
        remedies=(_ANOTHER,),
    ),
    Text(
        "qemu-host-ssidsize",
        Program.QEMU,
        ("Host SMMUv3 SSIDSIZE not compatible (host=%u, QEMU=%u)",),
        "the vSMMU has {1} bits of SubstreamID, the pSMMU has {0}",
        _INFO,
        remedies=("vmm-msi attach {guest} {device} --vsmmu ssidsize={0}",),
    ),
    Text(
        "qemu-host-ril",
        Program.QEMU,
        ("Host SMMUv3 doesn't support Range Invalidation",),
        "the vSMMU has range invalidation, the pSMMU has not",
        _INFO,
        remedies=("vmm-msi attach {guest} {device} --vsmmu ril=off",),
    ),
    Text(
        "qemu-host-ats",
        Program.QEMU,
        ("Host SMMUv3 doesn't support Address Translation Services",),
        "the vSMMU has ATS, the pSMMU has not",
        _INFO,
        remedies=("vmm-msi attach {guest} {device} --vsmmu ats=off",),
    ),
    Text(
        "qemu-host-oas",
        Program.QEMU,
        ("Host SMMUv3 supports only %d-bit IPA, but the vSMMU OAS implies %d-bit IPA",),
        "the guest may use IPAs of {1} bits, the pSMMU takes {0}",
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
        why="it is at another address now, or its driver or its virtual functions are not there",
        remedies=("lspci -D for its address",),
    ),
    Text(
        "qemu-no-group",
        Program.QEMU,
        ("no iommu_group found",),
        "the device is in no IOMMU group: no SMMU translates what it does",
        "hw/vfio/container-legacy.c",
        why="the SMMU is turned off in the firmware or missing from the kernel, or the firmware's "
        "tables lead the device past it",
        remedies=("vmm-msi topology show has which SMMU each device is behind",),
    ),
    Text(
        "qemu-group-busy",
        Program.QEMU,
        ("error getting device from group %d",),
        "VFIO does not give a device of IOMMU group {0} out",
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
        "an IOMMU group has a device that a driver of the host uses",
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
        "VFIO sets up no translation for the IOMMU group",
        "hw/vfio/container-legacy.c vfio_container_connect",
        cases={
            "Operation not permitted": "its MSIs are not isolated (EPERM): the host's log says "
            "'No interrupt remapping support'",
            "Cannot allocate memory": "more memory would have to be locked than QEMU may",
        },
        remedies=("dmesg | vmm-msi explain, for the kernel's own word on it",),
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
        "guest memory did not go into stage 2",
        "hw/vfio/listener.c vfio_container_region_add",
        cases={
            "Cannot allocate memory": "more memory would have to be locked than QEMU may (ENOMEM)",
            "Invalid argument": "it covers a reserved region of the device, such as the SW MSI "
            "window 0x8000000-0x80fffff (EINVAL; Linux iopt_check_iova)",
            "Bad address": "it is a BAR of another device (EFAULT): no peer-to-peer DMA, nothing "
            "else is lost",
        },
        missing="S2: the guest's RAM",
        stage=2,
        remedies=(
            "<memtune><hard_limit/></memtune> of the RAM and 1 GiB, where memory may not be locked",
        ),
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
        "the host's kernel does not enable the device's MSIs",
        "hw/vfio/pci.c vfio_msix_enable, vfio_msi_enable",
        cases={
            "No space left on device": "the ITS has no event or LPI left for it, or the device is "
            "attached to nothing (ENOSPC)",
            "Value too large": "the 65th distinct doorbell of one iommufd file descriptor: it has "
            "64 slots (EOVERFLOW; Linux iommufd_sw_msi_get_map)",
            "Cannot allocate memory": "no address was found for its doorbell (ENOMEM)",
        },
        remedies=("dmesg | vmm-msi explain, for the kernel's own word on it",),
    ),
    Text(
        "qemu-two-iommus",
        Program.QEMU,
        (
            "virt machine already has %s set. Doesn't support incompatible iommus",
            "virt machine does not support multiple IOMMUs",
        ),
        "a vSMMU for the whole machine and one for an expander bus do not go together",
        "hw/arm/virt.c",
        remedies=("give each <iommu> a <driver pciBus='N'/>, as vmm-msi attach does, or have one",),
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
        "a vSMMU is on a bus that none can serve",
        "hw/arm/smmu-common.c smmu_base_realize",
        remedies=("pciBus of its <driver> is the index of a pcie-expander-bus",),
    ),
)
