"""Linux log messages about VFIO, MSIs, ITSes and firmware tables.

Source files are those of Linux 7.2, below ``drivers/``.
"""

from __future__ import annotations

from vmm_msi.explain.explanation import Program
from vmm_msi.explain.in_guest import DIRECT_WINDOW, FIRMWARE, NO_ISOLATION
from vmm_msi.explain.known_text import Case, Text

_VFIO_DRIVERS = (
    "vfio-pci",
    "nvgrace-gpu-vfio-pci",
    "mlx5_vfio_pci",
    "hisi_acc_vfio_pci",
    "vfio-platform",
)

TEXTS: tuple[Text, ...] = (
    Text(
        "direct-mapping-required",
        Program.KERNEL,
        (
            (
                "Firmware has requested this device have a 1:1 IOMMU mapping, rejecting "
                "configuring the device without a 1:1 mapping. Contact your platform vendor."
            ),
        ),
        "the firmware requires a 1:1 mapping for this device (an RMR of the host's IORT, or "
        "iommu-addresses in its device tree), so Linux refuses to assign it",
        "iommu/iommu.c __iommu_device_set_domain",
        why="/sys/kernel/iommu_groups/*/reserved_regions has a region of type direct for it",
        remedies=("assign another device", FIRMWARE),
        in_guest={"": DIRECT_WINDOW},
        older=(
            (
                "Device is ineligible for IOMMU domain attach due to platform RMRR requirement.  "
                "Contact your platform vendor."
            ),
        ),
    ),
    Text(
        "direct-mapping-failed",
        Program.KERNEL,
        ("IOMMU driver was not able to establish FW requested direct mapping.",),
        "the firmware requires a 1:1 mapping for this device, and the SMMU driver could not create "
        "it",
        "iommu/iommu.c iommu_setup_default_domain",
        remedies=(FIRMWARE,),
    ),
    Text(
        "msi-not-isolated",
        Program.KERNEL,
        (
            (
                'No interrupt remapping support.  Use the module param "allow_unsafe_interrupts" '
                "to enable VFIO IOMMU support on this platform"
            ),
        ),
        "VFIO refuses to assign the device: its MSIs are not isolated, so it could raise any "
        "interrupt of the host (EPERM)",
        "vfio/vfio_iommu_type1.c vfio_iommu_type1_attach_group",
        why="the device's MSIs do not pass an ITS, or the ITS cannot distinguish devices",
        in_guest={"": NO_ISOLATION},
        remedies=(
            "use a device whose MSIs pass an ITS: vmm-msi topology show lists each device's ITS",
            (
                "if you trust the guest as much as the host: set "
                "vfio_iommu_type1.allow_unsafe_interrupts=1 for VFIO containers, "
                "iommufd.allow_unsafe_interrupts=1 for iommufd; the guest can then raise any "
                "interrupt of the host"
            ),
        ),
    ),
    Text(
        "msi-isolation-overridden",
        Program.KERNEL,
        (
            (
                "MSI interrupts are not secure, they cannot be isolated by the platform. Check "
                "that platform features like interrupt remapping are enabled. Use the "
                '"allow_unsafe_interrupts" module parameter to override'
            ),
        ),
        "the device was assigned although its MSIs are not isolated: the guest can raise any "
        "interrupt of the host",
        "iommu/iommufd/device.c iommufd_device_bind",
        why="iommufd.allow_unsafe_interrupts=1 is set; otherwise Linux refuses this with EPERM",
        remedies=("use a device whose MSIs pass an ITS, and set the parameter to 0",),
    ),
    Text(
        "locked-memory",
        Program.KERNEL,
        ("RLIMIT_MEMLOCK (%ld) exceeded",),
        "a process that assigns devices may lock only {0} bytes of memory, but has to pin all RAM "
        "of the guest",
        "vfio/vfio_iommu_type1.c vfio_pin_pages_remote, vfio_pin_page_external",
        remedies=(
            (
                "set <memtune><hard_limit/></memtune> to the RAM plus 1 GiB, or "
                "LimitMEMLOCK=infinity in the unit of the service that starts QEMU"
            ),
        ),
    ),
    Text(
        "virtual-functions-in-use",
        Program.KERNEL,
        ("Cannot bind to PF with SR-IOV enabled",),
        "a physical function cannot be assigned while it has virtual functions",
        "vfio/pci/vfio_pci_core.c vfio_pci_core_register_device",
        remedies=("assign a virtual function, or write 0 to its sriov_numvfs",),
    ),
    Text(
        "vfio-no-group",
        Program.KERNEL,
        (
            *(f"probe with driver {driver} failed with error -22" for driver in _VFIO_DRIVERS),
            *(f"probe with driver {driver} failed with error -19" for driver in _VFIO_DRIVERS),
        ),
        "vfio-pci refuses the device, usually because it is in no IOMMU group: no SMMU translates "
        "its DMA",
        "vfio/group.c vfio_group_find_or_alloc, vfio/vfio_main.c __vfio_register_dev, "
        "vfio/pci/vfio_pci_core.c vfio_pci_core_register_device",
        cases={
            "Invalid argument": Case(
                "no SMMU driver took it: the firmware's tables (iommu-map, IORT) do not route its "
                "host bridge to an SMMU, the SMMU is off in the firmware, or its driver is missing "
                "or came later than vfio-pci. Otherwise, its SMMU is not coherent, or it is a "
                "bridge, or on the list of devices that vfio-pci denies (EINVAL)",
                findings=("no-iommu-group", "no-smmu", "smmu-not-driven", "smmu-not-coherent"),
            ),
        },
        in_guest={
            "": Case(
                "the guest has no vSMMU or virtio-iommu for the device's bus, so it has no IOMMU "
                "group there",
                what="vfio-pci in the guest refuses the device: no vIOMMU translates its DMA",
                remedies=(
                    (
                        "for VFIO in the guest, such as DPDK or a nested guest: give the guest a "
                        "virtio-iommu, or use VFIO's no-IOMMU mode in it, where the host's SMMU "
                        "still confines the device to the guest's memory"
                    ),
                ),
                findings=(),
            ),
        },
        why="no SMMU driver took it, or it does not respond (ENODEV)",
        remedies=(
            (
                "look up the SMMU of each device with vmm-msi topology show, and the finding with "
                "vmm-msi doctor --device {device}"
            ),
            "load vfio-pci after the SMMU's driver; ls /sys/bus/pci/devices/{device}/iommu_group",
        ),
        older=(
            *(f"{driver}: probe of %s failed with error -22" for driver in _VFIO_DRIVERS),
            *(f"{driver}: probe of %s failed with error -19" for driver in _VFIO_DRIVERS),
        ),
    ),
    Text(
        "vfio-probe-failed",
        Program.KERNEL,
        tuple(f"probe with driver {driver} failed with error %d" for driver in _VFIO_DRIVERS),
        "vfio-pci refuses the device",
        "base/dd.c call_driver_probe, vfio/pci/vfio_pci_core.c vfio_pci_core_register_device",
        cases={
            "Device or resource busy": Case(
                "it is a physical function with virtual functions (EBUSY)",
                findings=("sr-iov-pf",),
            ),
        },
        why="an earlier line has the reason",
        remedies=("look for the kernel's reason: dmesg | vmm-msi explain",),
        older=tuple(f"{driver}: probe of %s failed with error %d" for driver in _VFIO_DRIVERS),
    ),
    Text(
        "vfio-noiommu",
        Program.KERNEL,
        (
            "Adding kernel taint for vfio-noiommu group on device",
            "vfio-noiommu device opened by user (%s:%d)",
        ),
        "the device is used without an SMMU (VFIO's no-IOMMU mode): it can access all memory",
        "vfio/group.c vfio_group_find_or_alloc, vfio_device_open_file",
        in_guest={
            "": Case(
                "no vIOMMU of the guest translates it, and vfio.enable_unsafe_noiommu_mode=1 is "
                "set; the host's SMMU confines it to the guest's memory",
                what="a program of the guest can have the device access all of the guest's memory "
                "(VFIO's no-IOMMU mode)",
                remedies=("nothing has to be fixed if the guest's user trusts that program",),
                findings=(),
            ),
        },
        why="it is in no IOMMU group, and vfio.enable_unsafe_noiommu_mode=1 is set; its node is "
        "/dev/vfio/noiommu-N, which QEMU and libvirt do not use",
        remedies=("use a device behind an SMMU, and set the parameter to 0",),
    ),
    Text(
        "vfio-denied",
        Program.KERNEL,
        ("%04x:%04x exists in vfio-pci device denylist, driver probing disallowed.",),
        "vfio-pci refuses this type of device: a guest could misuse its errata",
        "vfio/pci/vfio_pci.c vfio_pci_is_denylisted",
        remedies=(
            "assign another device; vfio-pci.disable_denylist=1 only if you trust the guest",
        ),
    ),
    Text(
        "vfio-vf-token",
        Program.KERNEL,
        (
            "VF token required to access device",
            "Incorrect VF token provided for device",
            "VF token incorrectly provided, PF not bound to vfio-pci",
            "VF token incorrectly provided, not a PF or VF",
        ),
        "VFIO refuses to open a virtual function: its physical function is bound to vfio-pci, too, "
        "and both need the same VF token",
        "vfio/pci/vfio_pci_core.c vfio_pci_core_match_token_uuid",
        remedies=(
            (
                "bind the physical function to its own driver, or give both the same token "
                "(QEMU: vf-token=UUID)"
            ),
        ),
    ),
    Text(
        "vfio-device-request",
        Program.KERNEL,
        (
            "Relaying device request to user (#%u)",
            "No device request channel registered, blocked until released by user",
        ),
        "the host asks for the device back and waits until the guest releases it",
        "vfio/pci/vfio_pci_core.c vfio_pci_core_request",
        why="the device was unbound from vfio-pci or removed while a guest uses it",
        remedies=("detach it from the guest first: vmm-msi detach {guest} {device}",),
    ),
    Text(
        "vfio-bars-restored",
        Program.KERNEL,
        ("reset recovery - restoring BARs",),
        "the device was reset while a guest uses it: its BARs and its MSI addresses were lost",
        "vfio/pci/vfio_pci_config.c vfio_bar_restore",
        why="another function of the device, or its bus, was reset; VFIO restores the BARs, and "
        "the guest's driver has to start the device again",
        remedies=("assign all functions that are reset together to one guest",),
        older=("reset recovery - restoring bars",),
    ),
    Text(
        "irq-bypass",
        Program.KERNEL,
        ("irq bypass producer (eventfd %p) registration fails",),
        "interrupts of the device reach the guest through a handler of the host, instead of "
        "directly",
        "vfio/pci/vfio_pci_intrs.c vfio_msi_set_vector_signal",
        why="another vector uses the same eventfd (EBUSY), or KVM could not set up direct "
        "injection (GICv4)",
        remedies=("nothing has to be fixed: the MSIs still arrive",),
        older=("irq bypass producer (token %p) registration fails",),
    ),
    Text(
        "no-guest-binding",
        Program.KERNEL,
        ("No usable S1 MSI mapping found", "no MSI binding found"),
        "the kernel has no unused doorbell binding of the guest for the device's pITS (ENOMEM)",
        '"SMMUv3 Nested Stage Setup" (2018-2021), iommu_dma_get_nested_msi_page',
        why="bindings belong to the nested IOMMU domain, not to a device, and each maps to one "
        "hDB. With a second pITS and one gIOVA none is left; or MSIs were enabled before the "
        "binding",
        missing="S2: gDB -> hDB of the device's pITS",
        stage=2,
        strategies=True,
    ),
    Text(
        "guest-binding-failed",
        Program.KERNEL,
        ("MSI S2 mapping failed (%d)",),
        "the kernel could not map the guest's doorbell (gDB) to the device's pITS (hDB)",
        '"SMMUv3 Nested Stage Setup" (2018-2021), iommu_dma_get_msi_page',
        cases={
            "File exists": Case(
                "another device's binding has mapped the same gDB already, perhaps to another "
                "pITS (EEXIST)"
            ),
            "Cannot allocate memory": Case("there is no memory for a table (ENOMEM)"),
        },
        why="an S2 maps a gDB to only one hDB, once",
        missing="S2: gDB -> hDB of the device's pITS",
        stage=2,
        strategies=True,
    ),
    Text(
        "doorbells-of-two-itses",
        Program.KERNEL,
        ("Nested mode forbids to attach devices using different physical MSI doorbells",),
        "a device is refused because its pITS differs from that of the devices already in the "
        "nested IOMMU domain (EINVAL)",
        '"SMMUv3 Nested Stage Setup" (2018-2021), arm_smmu_attach_dev',
        why="an S2 maps a gDB to only one hDB",
        missing="S2: gDB -> hDB of the device's pITS, in addition to that of the other pITS",
        stage=2,
        strategies=True,
    ),
    Text(
        "its-commands",
        Program.KERNEL,
        (
            "ITS queue timeout (%llu %llu)",
            "ITS queue not draining",
            "ITS cmd %ps failed",
            "ITS virtual pending table not cleaning",
        ),
        "an ITS does not complete its commands: interrupts are not set up or not moved",
        "irqchip/irq-gic-v3-its.c its_wait_for_range_completion",
        why="it hangs, or a command is invalid, such as for a DeviceID outside its table",
        remedies=("check the pITS and its driver: no strategy can fix it",),
        older=("ITS queue timeout (%llu %llu %llu)",),
    ),
    Text(
        "its-device-table",
        Program.KERNEL,
        (
            "ITS@%pa: %s Table too large, reduce ids %llu->%u",
            "ITS@%pa: %s too large, reduce ITS pages %u->%u",
            "Supplied DeviceID (%u) outside of Device Table range (%u)!",
        ),
        "an ITS's table is too small for all DeviceIDs: devices outside it get no MSIs",
        "irqchip/irq-gic-v3-its.c its_parse_indirect_baser, irq-gic-v5-its.c",
        why="the DeviceIDs are sparse (several segments on one ITS)",
        remedies=("use a kernel with 64K pages, or a device with a lower DeviceID",),
    ),
    Text(
        "its-absent",
        Program.KERNEL,
        (
            "ITS@%pa: failed probing (%d)",
            "ITS@%pa: No ITS detected, giving up",
            "ITS@%pa: Failed to quiesce, giving up",
            "ITS@%pa: Unable to map ITS registers",
            "ITS@%pa: %s doesn't stick: %llx %llx",
            "ITS@%pa: Unable to allocate GICv3 ITS domain token",
            "ITS@%pa: Unable to register GICv3 ITS domain token (ITS ID %d) to IORT",
            "no msi-controller property, ITS ignored",
            "ITS: No ITS available, not enabling LPIs",
        ),
        "an ITS that the firmware describes cannot be used: its devices have no MSIs",
        "irqchip/irq-gic-v3-its.c its_probe_one, its_init",
        in_guest={
            "": Case(
                "QEMU's machine has no ITS: a GICv2, its=off, or a machine type before virt-2.8",
                what="the guest's virtual ITS cannot be used: its devices have no MSIs",
                remedies=("use <gic version='3'/> in the guest's definition, without its=off",),
                findings=("guest-gic",),
            ),
        },
        remedies=("use devices on another ITS", FIRMWARE),
        older=(
            "Unable to locate ITS domain handle",
            "unable to locate ITS domain",
            "Unable to locate ITS domain",
        ),
    ),
    Text(
        "its-proxy-clash",
        Program.KERNEL,
        ("DevId %x clashes with GICv4 VPE proxy device",),
        "the device gets no MSIs: Linux uses its DeviceID 0x{0} itself",
        "irqchip/irq-gic-v3-its.c its_msi_prepare",
        why="with GICv4.0 Linux takes the ITS's highest DeviceID for the doorbells of virtual "
        "processors",
        remedies=(
            "use the device in another slot, or on another ITS, so that its DeviceID changes",
        ),
    ),
    Text(
        "its-no-gicv4",
        Program.KERNEL,
        (
            "ITS: Disabling GICv4 support",
            "ITS: Can't allocate GICv4 proxy device",
            "ITS: No GICv4 VPE domain allocated",
            "ITS@%pa: No ITSList entry available!",
            "ITS@%pa: Duplicate ITSList entry %d",
        ),
        "interrupts are not injected directly into guests (GICv4); MSIs arrive by way of the host",
        "irqchip/irq-gic-v3-its.c its_init, its_compute_its_list_map; irq-gic-v4.c",
        remedies=("nothing has to be fixed: only the latency is higher",),
    ),
    Text(
        "iort-broken",
        Program.KERNEL,
        (
            "requested ITS ID index [%d] overruns ITS entries [%d]",
            "conflicting mapping for input ID 0x%x",
            "Invalid ID mapping, skipping RMR node %p",
            "ID map has NULL parent reference",
            "ID mapping index overflows valid mappings",
            "Invalid MSI mapping",
            "RMR descriptor[0x%llx - 0x%llx] not aligned to 64K, continue with",
            "RMR descriptor[0x%llx] with zero length, continue anyway",
            "RMR descriptor[0x%llx - 0x%llx] overlaps, continue anyway",
            "iort node pointer overflows, bad table",
            "ACPI: IORT: Failed to get table, %s",
        ),
        "the firmware's IORT contradicts itself: a device has the wrong StreamID, DeviceID or ITS",
        "acpi/arm64/iort.c",
        remedies=(FIRMWARE,),
    ),
)
