"""Messages of VMMs other than QEMU, and of DPDK, about VFIO and iommufd.

Read in cloud-hypervisor 54 (``pci/src/vfio.rs``, and the crates vfio-ioctls 0.8 and iommufd-ioctls
0.2 of rust-vmm), OpenVMM of August 2026 (below ``vm/devices``), kata 3 and DPDK 26.07; their
formats stand here as printf(3) formats. What these programs pass on of QEMU and of the kernel has
its text there.
"""

from __future__ import annotations

from vmm_msi.explain import map_failures
from vmm_msi.explain.explanation import Program
from vmm_msi.explain.known_text import Case, Text

_GROUP = (
    "every device of an IOMMU group must be bound to vfio-pci or have no driver, and none of them "
    "may be in another guest"
)
_DMESG = "look for the kernel's reason: dmesg | vmm-msi explain"
_MSI = (
    "its MSIs are not isolated (EPERM; Linux vfio_iommu_type1_attach_group, iommufd_device_bind): "
    "the host's log has 'No interrupt remapping support'"
)
_NESTING = "vm/devices/pci/vfio_assigned_device/src/iommufd_nesting.rs"
_MANAGER = "vm/devices/pci/vfio_assigned_device/src/manager.rs"
_SMMU = "vm/devices/iommu/smmu/src/shared.rs"

TEXTS: tuple[Text, ...] = (
    Text(
        "clh-map-failed",
        Program.CLOUD_HYPERVISOR,
        (
            "Failed to DMA map: %s for device %s",
            "Failed to map VFIO MMIO region: %s",
            "failed to add guest memory map into iommu table: %s",
            "failed to map an IOVA range to the IOAS: %s",
            "Failed to DMA map VFIO device: %s",
        ),
        "memory of the guest could not be mapped in stage 2",
        "pci/src/vfio.rs VfioPciError; vfio-ioctls VfioError; iommufd-ioctls IommufdError",
        case_of=map_failures.cloud_hypervisor_case,
        missing="S2: the guest's RAM",
        stage=2,
        remedies=(_DMESG,),
        older=("VfioMapRegion(DmaMap(%s", "VfioDmaMap(%s", "IommuDmaMap(Error(%d"),
    ),
    Text(
        "clh-slot",
        Program.CLOUD_HYPERVISOR,
        ("Failed to create user memory region",),
        "KVM refuses to map a BAR into the guest",
        "pci/src/vfio.rs VfioPciError",
        why="the BAR is smaller than the host's page (64K), or shares one with another BAR",
        remedies=("use a host kernel with 4K pages, or a newer cloud-hypervisor",),
        older=("CreateUserMemoryRegion(%s",),
    ),
    Text(
        "clh-group",
        Program.CLOUD_HYPERVISOR,
        ("group is not viable", "failed to add vfio group into vfio container"),
        "a host driver is bound to a device of the IOMMU group, or the group is in use",
        "vfio-ioctls/src/lib.rs VfioError",
        why=_GROUP,
        remedies=("bind the others to vfio-pci, too, or stop the other guest",),
        older=("VfioCreate(GroupViable", "VfioCreate(GroupSetContainer"),
    ),
    Text(
        "clh-open",
        Program.CLOUD_HYPERVISOR,
        (
            "failed to open /dev/vfio/vfio container: %s",
            "failed to open /dev/vfio/%s group: %s",
            "failed to open device cdev",
            "invalid 'vfio_dev' folder",
            "failed to new VfioIommufd",
            "Cannot create iommufd",
        ),
        "cloud-hypervisor cannot open a node of VFIO or iommufd",
        "vfio-ioctls/src/lib.rs VfioError; vmm/src/device_manager.rs DeviceManagerError",
        cases={
            "No such file": Case(
                "the device is not bound to vfio-pci, has no IOMMU group, or the kernel lacks "
                "CONFIG_VFIO_DEVICE_CDEV or CONFIG_IOMMUFD",
                findings=("no-iommu-group", "host-driver", "kernel-no-vfio-cdev"),
            ),
            "Permission denied": Case("its user has no permission, or a policy forbids it"),
            "Device or resource busy": Case(
                "another process has it open, such as another guest", findings=("held-by-domain",)
            ),
        },
        remedies=("bind the device to vfio-pci, and give the VMM's user its node",),
        older=("VfioCreate(OpenGroup(%s", "VfioCreate(OpenContainer(%s"),
    ),
    Text(
        "clh-iommu-type",
        Program.CLOUD_HYPERVISOR,
        (
            "failed to set container's IOMMU driver type as VfioType1V2: %s",
            "failed to bind the vfio device to the specified iommufd: %s",
            "container doesn't support VfioType1V2 IOMMU driver type",
        ),
        "VFIO refuses to set up a translation for the device",
        "vfio-ioctls/src/lib.rs VfioError",
        cases={
            "Operation not permitted": Case(_MSI, findings=("unsafe-interrupts-needed",)),
            "Device or resource busy": Case(
                "a host driver is bound to a device of its IOMMU group (EBUSY)",
                findings=("group-host-driver",),
            ),
        },
        remedies=(_DMESG,),
        older=("VfioCreate(ContainerSetIOMMU(%s",),
    ),
    Text(
        "clh-attach",
        Program.CLOUD_HYPERVISOR,
        (("failed to associate the vfio device with an IOAS within the bound iommufd: %s"),),
        "the kernel refuses to attach the device to the guest's memory",
        "vfio-ioctls/src/lib.rs VfioError",
        cases={
            "Address already in use": Case(
                "guest RAM overlaps a reserved region of the device (EADDRINUSE; Linux "
                "iopt_table_enforce_dev_resv_regions)",
                findings=("guest-ram-reserved", "guest-ram-in-msi-window"),
            ),
            "Invalid argument": Case(
                "another device of its IOMMU group has a different translation (EINVAL)",
                findings=("partial-group",),
            ),
        },
        remedies=(_DMESG,),
    ),
    Text(
        "clh-interrupts",
        Program.CLOUD_HYPERVISOR,
        ("Failed to enable MSI-x", "failed to enable vfio device irq"),
        "the host's kernel refuses to enable the device's MSIs",
        "pci/src/vfio.rs VfioPciError; vfio-ioctls/src/lib.rs VfioError",
        remedies=(_DMESG,),
        older=("EnableMsix(VfioDeviceEnableIrq", "EnableMsi(VfioDeviceEnableIrq"),
    ),
    Text(
        "openvmm-map-failed",
        Program.OPENVMM,
        (
            "failed to map %s into iommufd IOAS",
            "failed to map device memory into iommufd IOAS; P2P DMA to this region will not work",
            (
                "failed to map device memory into VFIO container; P2P DMA to this region will not "
                "work"
            ),
            "VFIO DMA map failed",
            "VFIO_IOMMU_MAP_DMA failed: %s",
        ),
        "memory of the guest could not be mapped in stage 2",
        f"{_MANAGER} map_dma; vm/devices/user_driver/vfio_sys/src/iommufd.rs ioas_map",
        case_of=map_failures.case,
        missing="S2: the guest's RAM",
        stage=2,
        remedies=(_DMESG,),
    ),
    Text(
        "openvmm-group",
        Program.OPENVMM,
        ("VFIO group %s is not viable (all devices in the group must be bound to vfio-pci)",),
        "a host driver is bound to a device of IOMMU group {0}",
        f"{_MANAGER} prepare_device",
        why=_GROUP,
        remedies=("bind the others to vfio-pci as well",),
    ),
    Text(
        "openvmm-software-smmu",
        Program.OPENVMM,
        (
            "VFIO device %s is behind a software IOMMU",
            "VFIO device %s needs a hardware-nestable IOMMU: use the cdev path",
        ),
        "the device is behind an emulated vSMMU, or is opened by its group: neither can nest",
        "vm/devices/pci/vfio_assigned_device/src/resolver.rs",
        why="the VMM does not see what the guest maps in an emulated vSMMU; an accelerated one "
        "requires iommufd and the device's own node",
        remedies=("use an accelerated SMMU for its root complex, with iommufd, or no SMMU",),
    ),
    Text(
        "openvmm-smmu-host",
        Program.OPENVMM,
        (
            "host SMMU does not support AArch64 translation tables",
            "host SMMU does not support little-endian translation tables",
            "host SMMU does not support the 4KB translation granule (IDR5.GRAN4K=0)",
            "host SMMU reported an unknown OAS encoding (%s)",
            "advertised SMMU OAS %s exceeds host SMMU OAS %s",
            "configured SMMU oas=%s exceeds host SMMU OAS %s",
            "unexpected host IOMMU hw info type %s (expected ARM SMMUv3)",
            "device %s is incompatible with the host SMMU",
        ),
        "the pSMMU lacks a feature that the vSMMU has",
        f"{_SMMU}, {_NESTING}",
        remedies=("use oas=auto, another host, or no accelerated SMMU",),
    ),
    Text(
        "openvmm-smmu-twice",
        Program.OPENVMM,
        (
            "SMMU is already backed by a live host vIOMMU; a single vSMMU cannot be backed by two",
            "vSMMU cannot be backed by two physical SMMUs",
            "SMMU is already associated with IOMMU context %s; it cannot also use %s",
        ),
        "a vSMMU has devices of two pSMMUs, or of two iommufd contexts",
        f"{_SMMU}, {_MANAGER}",
        remedies=("give the devices of each pSMMU a root complex and an SMMU of their own",),
    ),
    Text(
        "openvmm-smmu-acpi",
        Program.OPENVMM,
        (
            "SMMU on root complex %s: accelerated translation requires ACPI",
            (
                "the hypervisor does not support an accelerated device-assignment MSI IOVA "
                "reservation"
            ),
        ),
        "the guest does not learn of the MSI window: an accelerated SMMU needs an RMR in its IORT",
        "openvmm/openvmm_core/src/worker/dispatch/smmu_wiring.rs",
        why="without the RMR the guest's stage 1 does not map the doorbells, and MSIs fault",
        remedies=("boot the guest with ACPI, on Linux with KVM",),
    ),
    Text(
        "openvmm-nesting",
        Program.OPENVMM,
        (
            "failed to allocate S2 parent HWPT for nesting",
            "failed to allocate nested HWPT for S1_TRANS",
            "failed to allocate abort HWPT for accel SMMU",
            "failed to allocate bypass HWPT for accel SMMU",
            "failed to create SMMU accel state",
            "host rejected a vIOMMU on a nesting parent allocated for this device",
            "IOMMU_HWPT_ALLOC failed",
        ),
        "the kernel refuses to nest the device's translation",
        f"{_NESTING}, {_MANAGER}",
        cases={
            "Operation not supported": Case(
                "the pSMMU cannot nest, or neither it (S2FWB) nor the PCI host (CANWBS) stops a "
                "guest from disabling cacheability (EOPNOTSUPP)",
                findings=("smmu-not-nested", "smmu-no-s2fwb", "kernel-no-nested-smmu"),
            ),
        },
        remedies=("use a kernel with CONFIG_ARM_SMMU_V3_IOMMUFD=y on a pSMMU that nests", _DMESG),
    ),
    Text(
        "openvmm-events",
        Program.OPENVMM,
        (
            "smmu accel: host vEVENTQ events lost",
            "smmu accel: vEVENTQ read failed; host events can no longer reach the guest",
            "failed to allocate vEVENTQ for accel SMMU",
        ),
        "events of the vSMMU were lost: the guest does not see its stage 1 faults",
        _NESTING,
        remedies=("fix the fault that the guest's own log shows: vmm-msi explain --in-guest",),
    ),
    Text(
        "openvmm-invalidate",
        Program.OPENVMM,
        (
            "smmu accel: host rejected invalidation batch",
            "IOMMU_HWPT_INVALIDATE failed (kernel handled %s entries)",
        ),
        "an invalidation of the guest failed",
        _NESTING,
        why="the guest sent a command for a StreamID without a device, or a command that the "
        "kernel does not forward",
        remedies=("use a guest kernel that uses only the StreamIDs behind its own SMMU",),
    ),
    Text(
        "openvmm-open",
        Program.OPENVMM,
        (
            "failed to open VFIO device %s",
            "failed to open /dev/iommu",
            "failed to bind VFIO cdev to iommufd",
            "VFIO_DEVICE_BIND_IOMMUFD failed",
            "VFIO_DEVICE_ATTACH_IOMMUFD_PT failed",
            "failed to set VFIO IOMMU type to Type1v2 (IOMMU required)",
        ),
        "OpenVMM cannot open the device, or bind it to a translation",
        "vm/devices/user_driver/vfio_sys/src/cdev.rs, iommufd.rs; manager.rs",
        cases={
            "Operation not permitted": Case(_MSI, findings=("unsafe-interrupts-needed",)),
            "Device or resource busy": Case(
                "another process has it open, or a host driver is bound to a device of its group",
                findings=("held-by-domain", "group-host-driver"),
            ),
            "No such file": Case(
                "the device is not bound to vfio-pci, or the kernel has no iommufd",
                findings=("host-driver", "no-dev-iommu"),
            ),
            "Invalid argument": Case(
                "another device of its group has a different translation, or the firmware "
                "requires a 1:1 mapping for it",
                findings=("partial-group", "direct-region"),
            ),
        },
        remedies=(_DMESG,),
    ),
    Text(
        "openvmm-msix",
        Program.OPENVMM,
        ("VFIO map_msix failed", "failed to set msi-x trigger", "failed to enable MSI-X"),
        "the host's kernel refuses to enable the device's MSIs",
        "vm/devices/pci/vfio_assigned_device/src/lib.rs",
        remedies=(_DMESG,),
    ),
    Text(
        "kata-iommu-off",
        Program.KATA,
        (
            "IOMMU not enabled yet.",
            "iommu isn't set on kernel cmdline",
            "please do bind device to vfio",
            "read iommu group symlink failed",
            "IOMMU group %s contains no PCI devices",
            "%s has no IOMMU group",
        ),
        "the device has no IOMMU group: no SMMU translates its DMA, or vfio-pci is not bound",
        "src/runtime-rs/crates/hypervisor/src/device/driver/vfio.rs; src/agent/src/device",
        remedies=(
            "look up the SMMU of each device with vmm-msi topology show",
            "bind the device to vfio-pci",
        ),
    ),
    Text(
        "kata-port",
        Program.KATA,
        (
            (
                "cold_plug_vfio= or hot_plug_vfio= port is not set for device %s (BridgePort | "
                "RootPort | SwitchPort)"
            ),
        ),
        "kata has no PCI port for the device",
        "src/runtime/pkg/device/drivers/vfio.go Attach",
        remedies=('set cold_plug_vfio = "root-port" in kata\'s configuration.toml',),
    ),
    Text(
        "kata-viommu",
        Program.KATA,
        ("Arm64 architecture does not support vIOMMU",),
        "kata does not give guests a vSMMU on Arm",
        "src/runtime/virtcontainers/qemu_arm64.go appendIOMMU",
        remedies=("set enable_iommu = false: the host alone translates the device",),
    ),
    Text(
        "dpdk-group",
        Program.DPDK,
        ("VFIO group is not viable! Not all devices in IOMMU group bound to VFIO or unbound",),
        "a host driver is bound to a device of the IOMMU group",
        "lib/eal/linux/eal_vfio.c dev_vfio_setup_device",
        why=_GROUP,
        remedies=("bind the others to vfio-pci as well: dpdk-devbind.py --status",),
    ),
    Text(
        "dpdk-map",
        Program.DPDK,
        ("set up DMA remapping, error %i (%s)", "DMA remapping failed, error %i (%s)"),
        "memory of the application could not be mapped for the device",
        "lib/eal/linux/eal_vfio_group.c vfio_type1_dma_mem_map",
        cases={
            "Cannot allocate memory": Case(
                "the process would exceed its limit on locked memory (ENOMEM)",
                remedies=("raise the limit: ulimit -l, LimitMEMLOCK=",),
            ),
            "Invalid argument": Case(
                "an address is in a reserved region, or beyond the IOMMU's width (EINVAL)",
                remedies=("use --iova-mode=pa, or --iova-mode=va with fewer address bits",),
            ),
            "No space left": Case(
                "the container has as many mappings as it may have (ENOSPC)",
                remedies=("use larger huge pages, or raise vfio_iommu_type1.dma_entry_limit",),
            ),
        },
        remedies=(_DMESG,),
    ),
    Text(
        "dpdk-not-vfio",
        Program.DPDK,
        ("not managed by VFIO driver, skipping", "Failed to open VFIO group %d"),
        "DPDK leaves the device out: it is not bound to vfio-pci, or has no IOMMU group",
        "lib/eal/linux/eal_vfio.c dev_vfio_setup_device",
        remedies=("bind it: dpdk-devbind.py -b vfio-pci {device}",),
    ),
    Text(
        "dpdk-bind",
        Program.DPDK,
        (
            "IOMMU support is disabled, use --noiommu-mode for binding in noiommu mode",
            "bind failed for %s - Cannot bind to driver vfio-pci",
        ),
        "vfio-pci does not take the device: no SMMU is in use, or the device has no IOMMU group",
        "usertools/dpdk-devbind.py",
        remedies=(
            "look for the kernel's reason: dmesg | vmm-msi explain",
            "look up the SMMU of each device with vmm-msi topology show",
        ),
    ),
    Text(
        "dpdk-open",
        Program.DPDK,
        ("Cannot open /dev/vfio/%s: %s",),
        "DPDK cannot open the device node of an IOMMU group",
        "lib/eal/linux/eal_vfio.c vfio_open_group_fd",
        cases={
            "Device or resource busy": Case("another process has the group open (EBUSY)"),
            "Operation not permitted": Case(
                "the devices cgroup forbids it, or a no-IOMMU group requires CAP_SYS_RAWIO"
            ),
        },
        why="its user has no permission",
        remedies=("give the user the node, or stop the other process",),
    ),
    Text(
        "dpdk-iommu-type",
        Program.DPDK,
        (
            "failed to select IOMMU type",
            "cannot add VFIO group to container, error %i (%s)",
            "Getting a vfio_dev_fd for %s failed",
        ),
        "DPDK could not set up a translation for the device",
        "lib/eal/linux/eal_vfio.c dev_vfio_setup_device",
        why="its MSIs are not isolated, or no IOMMU driver of VFIO is loaded",
        remedies=("run modprobe vfio_iommu_type1", _DMESG),
    ),
)
