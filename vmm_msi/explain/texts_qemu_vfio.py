"""QEMU messages about VFIO: IOMMU groups, containers, iommufd and mappings.

Texts and source files are those of QEMU 11.1, unless a release is named.
"""

from __future__ import annotations

from vmm_msi.explain import map_failures
from vmm_msi.explain.explanation import Program
from vmm_msi.explain.in_guest import DIRECT_WINDOW
from vmm_msi.explain.known_text import Case, Text

_GROUP = (
    "every device of an IOMMU group must be bound to vfio-pci or have no driver, and none of them "
    "may be in another guest"
)
_UNSAFE = (
    "use a device whose MSIs pass an ITS: vmm-msi topology show lists each device's ITS",
    (
        "if you trust the guest as much as the host: set "
        "vfio_iommu_type1.allow_unsafe_interrupts=1 for VFIO containers, "
        "iommufd.allow_unsafe_interrupts=1 for iommufd; the guest can then raise any interrupt of "
        "the host"
    ),
)

TEXTS: tuple[Text, ...] = (
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
            "Permission denied": Case(
                "its user has no permission, or SELinux, AppArmor or the devices cgroup forbids it"
            ),
            "No such file": Case(
                "the kernel was built without CONFIG_IOMMUFD, or the module iommufd is not loaded"
            ),
        },
        remedies=("let libvirt open it: <iommufd enabled='yes'/> without fdgroup",),
    ),
    Text(
        "qemu-bind",
        Program.QEMU,
        ("error bind device fd=%d to iommufd=%d",),
        "the kernel refuses to bind the device to this iommufd",
        "hw/vfio/iommufd.c iommufd_cdev_connect_and_bind",
        cases={
            "Operation not permitted": Case(
                "its MSIs are not isolated and iommufd.allow_unsafe_interrupts is 0, or another "
                "file descriptor owns its IOMMU group (EPERM; Linux iommufd_device_bind)"
            ),
            "Device or resource busy": Case(
                "a host driver is bound to a device of its IOMMU group "
                "(EBUSY; Linux iommu_device_claim_dma_owner)"
            ),
            "Invalid argument": Case(
                "the firmware requires a 1:1 mapping for it (EINVAL; see the host's log)"
            ),
        },
        in_guest={"Invalid argument": DIRECT_WINDOW},
        remedies=(_GROUP,),
    ),
    Text(
        "qemu-attach-hwpt",
        Program.QEMU,
        ("[iommufd=%d] error attach %s (%d) pasid %d to id=%d",),
        "the kernel refuses to attach {1} to its translation",
        "hw/vfio/iommufd.c iommufd_cdev_attach_ioas_hwpt",
        cases={
            "Invalid argument": Case(
                "another device of its IOMMU group has a different translation, or "
                "it is behind another pSMMU (EINVAL)"
            ),
            "Address already in use": Case(
                "guest RAM overlaps a reserved region of the device, such as "
                "the SW MSI window (EADDRINUSE; Linux iopt_table_enforce_dev_resv_regions)"
            ),
            "No such file": Case("a device of its IOMMU group has no vDEVICE (ENOENT)"),
        },
        remedies=("assign all devices of the group behind one vSMMU, or only this one",),
        older=("[iommufd=%d] error attach %s (%d) to id=%d",),
    ),
    Text(
        "qemu-no-group",
        Program.QEMU,
        (
            "no iommu_group found",
            "Could not open '/dev/vfio/noiommu-%d'",
            "Failed to find iommu group sysfs path: %s",
        ),
        "the device has no IOMMU group: no SMMU translates its DMA",
        "hw/vfio/container-legacy.c vfio_device_get_groupid",
        why="the SMMU is disabled in the firmware or has no kernel driver, or the firmware's "
        "tables do not assign the device to it. With VFIO's no-IOMMU mode the device has "
        "/dev/vfio/noiommu-N, which QEMU does not use",
        remedies=(
            "look up the SMMU of each device with vmm-msi topology show",
            "look for the kernel's reason: dmesg | vmm-msi explain",
        ),
        older=("failed to open /dev/vfio/noiommu-%d",),
    ),
    Text(
        "qemu-group-busy",
        Program.QEMU,
        ("error getting device from group %d",),
        "VFIO refuses to open a device of IOMMU group {0}",
        "hw/vfio/container-legacy.c vfio_device_get",
        cases={
            "Device or resource busy": Case("another process has it open, such as another guest"),
            "No such device": Case("it is not bound to vfio-pci", findings=("host-driver",)),
            "Permission denied": Case(
                "it is a virtual function whose physical function is bound to vfio-pci, or the "
                "other way round, and a VF token is missing (EACCES; Linux "
                "vfio_pci_core_match_token_uuid)",
                remedies=("bind the physical function to its own driver, or use a VF token",),
                findings=("vf-token",),
            ),
            "Invalid argument": Case(
                "its power state, its reset or VFIO's no-IOMMU mode does not allow it (EINVAL)",
                remedies=("look for the kernel's reason: dmesg | vmm-msi explain",),
            ),
        },
        remedies=(_GROUP,),
    ),
    Text(
        "qemu-group-open",
        Program.QEMU,
        ("Could not open '/dev/vfio/%d'",),
        "QEMU cannot open the device node of IOMMU group {0}",
        "hw/vfio/container-legacy.c vfio_group_get",
        cases={
            "Device or resource busy": Case(
                "another process has the group open: another guest, or another device of the group "
                "(EBUSY; Linux vfio_group_fops_open)"
            ),
            "No such file": Case(
                "no device of the group is bound to vfio-pci, or the device has no IOMMU group",
                remedies=("bind it to vfio-pci: virsh nodedev-detach",),
                findings=("no-iommu-group", "host-driver"),
            ),
            "Permission denied": Case(
                "its user has no permission, or SELinux, AppArmor or the devices cgroup forbids it",
                remedies=(
                    "start the guest with libvirt, or give the user of QEMU the node: udev, ACL",
                ),
                findings=(),
            ),
            "Operation not permitted": Case(
                "the devices cgroup forbids it, or a no-IOMMU group requires CAP_SYS_RAWIO",
                remedies=("start the guest with libvirt, or allow the node in the cgroup",),
                findings=(),
            ),
        },
        remedies=(_GROUP,),
        older=(
            "failed to open /dev/vfio/%d",
            "error opening /dev/vfio/%d",
            "vfio: failed to get group %d",
        ),
    ),
    Text(
        "qemu-vfio-node",
        Program.QEMU,
        ("Could not open '/dev/vfio/vfio'",),
        "QEMU cannot open VFIO's container node",
        "hw/vfio/container-legacy.c vfio_container_connect",
        cases={
            "No such file": Case("the kernel has no CONFIG_VFIO_CONTAINER, or vfio is not loaded"),
            "No such device": Case("the module vfio is not loaded"),
            "Permission denied": Case("its user has no permission, or a policy forbids it"),
        },
        remedies=("run modprobe vfio-pci; or use iommufd: <iommufd enabled='yes'/>",),
        older=("failed to open /dev/vfio/vfio", "Failed to open /dev/vfio/vfio"),
    ),
    Text(
        "qemu-address-spaces",
        Program.QEMU,
        ("group %d used in multiple address spaces",),
        "devices of IOMMU group {0} are in different address spaces of the guest",
        "hw/vfio/container-legacy.c vfio_group_get",
        why="one of them is behind a vSMMU and another is not, or they are behind different ones; "
        "devices of one group share one translation",
        remedies=(
            "put all devices of the group behind one vSMMU, or all behind none, or assign only one",
        ),
    ),
    Text(
        "qemu-unaligned-region",
        Program.QEMU,
        ("received unaligned region %s iova=0x%lx offset_within_region=0x%lx",),
        "a memory region of the guest is not aligned to the host's pages, so devices cannot access "
        "it",
        "hw/vfio/listener.c vfio_listener_valid_section",
        why="the host has larger pages (64K) than the guest's layout is made for; devices need it "
        "only if it is RAM or a BAR that they access",
        remedies=("nothing has to be fixed for a TPM's or another small region",),
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
            "No available IOMMU models",
            "VFIO IOMMU Type1 is not supported",
            "Failed to get VFIO IOMMU info",
            "Failed to add group to VFIO container",
            "Failed to set VFIO IOMMU type",
            "memory listener initialization failed: ",
        ),
        "VFIO cannot set up a translation for the IOMMU group",
        "hw/vfio/container-legacy.c vfio_container_connect",
        cases={
            "IOMMU Type1 is not supported": Case(
                "the module vfio_iommu_type1 is not loaded",
                remedies=("run modprobe vfio_iommu_type1",),
                findings=(),
            ),
            "No available IOMMU models": Case(
                "the module vfio_iommu_type1 is not loaded",
                remedies=("run modprobe vfio_iommu_type1",),
                findings=(),
            ),
            "Operation not permitted": Case(
                "its MSIs are not isolated (EPERM; Linux vfio_iommu_type1_attach_group): the "
                "host's log has 'No interrupt remapping support'",
                remedies=_UNSAFE,
                findings=("unsafe-interrupts-needed",),
            ),
            "Cannot allocate memory": Case(
                "QEMU would exceed its limit on locked memory",
                remedies=("set <memtune><hard_limit/></memtune> to the RAM plus 1 GiB",),
                findings=("memlock",),
            ),
            "Bad address": Case(
                "the kernel cannot pin the guest's RAM (EFAULT; Linux vaddr_get_pfns): its file on "
                "hugetlbfs or tmpfs (/dev/shm) has no free pages",
                remedies=("give the file of the guest's RAM room for all of it",),
                findings=(),
            ),
            "Device or resource busy": Case(
                "a host driver uses a device of the group (EBUSY; Linux "
                "vfio_container_attach_group)",
                remedies=(_GROUP,),
                findings=("group-host-driver",),
            ),
            "Invalid argument": Case(
                "the IOMMU driver refuses the group (EINVAL): the firmware requires a 1:1 mapping "
                "for a device, or the group's reserved regions are already mapped; the host's log "
                "may have the reason",
                findings=("direct-region", "guest-ram-reserved"),
            ),
        },
        remedies=("look for the kernel's reason: dmesg | vmm-msi explain",),
        older=(
            "failed to set iommu for container",
            "failed to setup container for group %d",
            "failed to set group container",
            "RAM memory listener initialization failed: ",
            "memory listener initialization failed for container",
        ),
    ),
    Text(
        "qemu-map-notifier",
        Program.QEMU,
        ("device %02x.%02x.%x requires iommu MAP notifier which is not currently supported",),
        "the device is behind an emulated SMMUv3, which cannot tell VFIO what the guest maps",
        "hw/arm/smmuv3.c smmuv3_notify_flag_changed",
        why="the device's vSMMU, or the machine-wide one, is not accelerated; old releases only "
        "warn, and the device's DMA and MSIs fault",
        remedies=(
            (
                "put the device behind a vSMMU on an expander bus of its own, with <driver "
                "pciBus='N' accel='on'/> and iommufd, as vmm-msi attach {guest} {device} does"
            ),
            "or remove the <iommu>: without a vSMMU the host alone translates the device",
        ),
        older=(
            "SMMUv3 does not support notification on MAP: device %s will not function properly",
        ),
    ),
    Text(
        "qemu-map-failed",
        Program.QEMU,
        (
            "vfio_container_dma_map(%p, 0x%lx, 0x%lx, %p) = %d",
            "IOMMU_IOAS_MAP failed: %m, PCI BAR?",
            "IOMMU_IOAS_MAP_FILE failed: %m, PCI BAR?",
            "VFIO_MAP_DMA failed",
            "vfio: DMA mapping failed, unable to continue",
        ),
        "memory of the guest could not be mapped in stage 2",
        "hw/vfio/listener.c vfio_container_region_add",
        case_of=map_failures.case,
        missing="S2: the guest's RAM",
        stage=2,
        remedies=("look for the kernel's reason: dmesg | vmm-msi explain",),
        older=(
            "vfio_dma_map(%p, 0x%lx, 0x%lx, %p) = %d",
            "VFIO_MAP_DMA: %d",
            "IOMMU_IOAS_MAP failed: %m",
            "Container %p can't map guest IOVA region 0x%lx..0x%lx",
        ),
    ),
    Text(
        "qemu-no-peer-to-peer",
        Program.QEMU,
        (
            "PCI peer-to-peer transactions on BARs are not supported.",
            ("VFIO dma-buf not supported in kernel, using mmap fallback, P2P DMA will not work"),
        ),
        "devices of the guest cannot access each other's BARs (peer-to-peer); the guest runs",
        "hw/vfio/listener.c vfio_device_error_append, hw/vfio/region.c",
        why="the IOMMU does not map the BARs: the line above has the reason",
        remedies=(
            (
                "nothing has to be fixed without peer-to-peer DMA. Otherwise use Linux 6.19 or "
                "newer, whose VFIO exports BARs as dma-buf, with CONFIG_VFIO_PCI_DMABUF"
            ),
        ),
        older=("failed to vfio_dma_map. pci p2p may not work",),
    ),
    Text(
        "qemu-unmap-failed",
        Program.QEMU,
        (
            "vfio_container_dma_unmap(%p, 0x%lx, 0x%lx) = %d",
            "VFIO_UNMAP_DMA failed",
            "vfio_container_dma_unmap() failed: %s",
        ),
        "memory of the guest could not be unmapped from stage 2",
        "hw/vfio/listener.c vfio_listener_region_del",
        why="no mapping, or a larger one, is at this address: usually after a mapping that failed",
        remedies=("fix the mapping that failed above",),
        older=("vfio_dma_unmap(%p, 0x%lx, 0x%lx) = %d", "VFIO_UNMAP_DMA: %d"),
    ),
)
