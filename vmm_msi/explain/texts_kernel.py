"""Linux log messages about SMMUs, MSIs and assigned devices, except SMMUv3 events.

Source files are those of Linux 7.2, below ``drivers/``.
"""

from __future__ import annotations

from vmm_msi.explain.explanation import Program
from vmm_msi.explain.known_text import Case, Text

_SMMU = "iommu/arm/arm-smmu-v3/arm-smmu-v3.c"
_SMMU2 = "iommu/arm/arm-smmu/arm-smmu.c"
_VERSION_2 = "use a host with an SMMUv3: Linux does not nest on SMMUv1 and SMMUv2"
_FIRMWARE = "update the host's firmware, which provides the table; no strategy changes it"

TEXTS: tuple[Text, ...] = (
    Text(
        "smmu-command-error",
        Program.KERNEL,
        ("CMDQ error (cons 0x%08x): %s",),
        "the SMMU stopped at a command in its queue: {1}",
        f"{_SMMU} __arm_smmu_cmdq_skip_err",
        cases={
            "Illegal command": Case(
                "the SMMU does not support the command, which comes from the driver "
                "or from a guest whose invalidations are forwarded"
            ),
            "ATC invalidate timeout": Case(
                "a device with ATS did not respond to an invalidation: it "
                "hangs, was reset or was removed"
            ),
            "Abort on command fetch": Case("the SMMU could not read its queue in memory"),
        },
        remedies=(
            (
                "if a device with ATS does not respond: reset it or remove it, and disable ATS in "
                "its vSMMU: vmm-msi attach {guest} {device} --vsmmu ats=off"
            ),
        ),
    ),
    Text(
        "smmu-command-timeout",
        Program.KERNEL,
        ("CMD_SYNC timeout at 0x%08x [hwprod 0x%08x, hwcons 0x%08x]", "CMDQ timeout"),
        "the SMMU does not complete its commands",
        f"{_SMMU} arm_smmu_cmdq_issue_cmdlist",
        why="it stopped at an earlier command (look for a CMDQ error above), or it hangs; "
        "invalidated translations may still be in use",
        remedies=("find the device whose invalidation the SMMU waits for, and reset it",),
    ),
    Text(
        "smmu-global-error",
        Program.KERNEL,
        (
            "unexpected global error reported (0x%08x), this could be serious",
            "device has entered Service Failure Mode!",
        ),
        "the SMMU reports an error of its own, not one of a device",
        f"{_SMMU} arm_smmu_gerror_handler",
        why="the lines below describe the error; in Service Failure Mode the SMMU aborts all "
        "accesses",
        remedies=("check the host's SMMU and its driver: no guest and no strategy can fix it",),
    ),
    Text(
        "smmu-events-lost",
        Program.KERNEL,
        (
            "EVTQ overflow detected -- events lost",
            "EVTQ write aborted -- events may have been lost",
        ),
        "the SMMU's event queue overflowed: faults are missing from the log",
        f"{_SMMU} arm_smmu_evtq_thread",
        why="a device faults repeatedly, usually because its MSIs or DMA have no translation",
        remedies=("fix the fault that is logged most often above",),
    ),
    Text(
        "smmu-own-msi",
        Program.KERNEL,
        (
            "GERROR MSI write aborted",
            "EVTQ MSI write aborted",
            "CMDQ MSI write aborted",
            "PRIQ MSI write aborted",
            "no evtq irq - events will not be reported!",
        ),
        "the SMMU's own interrupt is not delivered, so its events are reported late or never",
        f"{_SMMU} arm_smmu_gerror_handler, arm_smmu_setup_unique_irqs",
        why="this is an MSI of the SMMU itself, not of a device",
        remedies=(_FIRMWARE,),
    ),
    Text(
        "smmu-page-request",
        Program.KERNEL,
        ("unexpected PRI request received:",),
        "a device sent a page request (PRI), which no driver handles",
        f"{_SMMU} arm_smmu_handle_ppr",
        remedies=("disable ATS in its vSMMU: vmm-msi attach {guest} {device} --vsmmu ats=off",),
    ),
    Text(
        "smmu-stream-alias",
        Program.KERNEL,
        ("Aliasing StreamID 0x%x (from %s) unsupported, expect DMA to be broken",),
        "two devices share StreamID 0x{0}; the other device is {1}",
        f"{_SMMU} arm_smmu_insert_master",
        why="they are behind a PCIe-to-PCI bridge, or the firmware maps both to one StreamID; an "
        "SMMUv3 cannot distinguish them",
        remedies=("assign neither, or move one of them to a slot that is not behind that bridge",),
        stream=0,
    ),
    Text(
        "smmu-no-translation",
        Program.KERNEL,
        ("no translation support!", "AArch64 table format not supported!"),
        "the SMMU has no translation support that Linux can use",
        f"{_SMMU} arm_smmu_device_hw_probe",
        remedies=("use another host: a nested vSMMU needs both stages",),
    ),
    Text(
        "smmu-rmr-bypass",
        Program.KERNEL,
        ("RMR SID(0x%x) bypass failed",),
        "StreamID 0x{0} did not get the 1:1 mapping that the firmware requires (RMR)",
        f"{_SMMU} arm_smmu_rmr_install_bypass_ste",
        why="the stream table has no entry for this StreamID",
        remedies=(_FIRMWARE,),
        stream=0,
    ),
    Text(
        "smmuv2-context-fault",
        Program.KERNEL,
        ("Unhandled context fault: fsr=0x%x, iova=0x%08lx, fsynr=0x%x, cbfrsynra=0x%x, cb=%d",),
        "an SMMUv1 or SMMUv2 has no translation for an address used by a device",
        f"{_SMMU2} arm_smmu_context_fault",
        why="the device's IOMMU domain does not map the address",
        stage=1,
        remedies=(_VERSION_2,),
        iova=1,
        stream=3,
        stream_mask=0xFFFF,
    ),
    Text(
        "smmuv2-unknown-stream",
        Program.KERNEL,
        (
            (
                'Blocked unknown Stream ID 0x%hx; boot with "arm-smmu.disable_bypass=0" to allow, '
                "but this may have security implications"
            ),
        ),
        "a device without an IOMMU domain accessed memory through an SMMUv1 or SMMUv2",
        f"{_SMMU2} arm_smmu_global_fault",
        why="the firmware does not describe its StreamID, or its driver is not bound yet. The "
        "suggested disable_bypass=0 would let every such device access all memory",
        remedies=(_FIRMWARE, _VERSION_2),
        stream=0,
    ),
    Text(
        "direct-mapping-required",
        Program.KERNEL,
        (
            (
                "Firmware has requested this device have a 1:1 IOMMU mapping, rejecting "
                "configuring the device without a 1:1 mapping. Contact your platform vendor."
            ),
        ),
        "the firmware requires a 1:1 mapping for this device (an RMR of the host's IORT), so Linux "
        "refuses to assign it",
        "iommu/iommu.c __iommu_device_set_domain",
        why="/sys/kernel/iommu_groups/*/reserved_regions has a region of type direct for it",
        remedies=("assign another device", _FIRMWARE),
    ),
    Text(
        "direct-mapping-failed",
        Program.KERNEL,
        ("IOMMU driver was not able to establish FW requested direct mapping.",),
        "the firmware requires a 1:1 mapping for this device, and the SMMU driver could not create "
        "it",
        "iommu/iommu.c iommu_setup_default_domain",
        remedies=(_FIRMWARE,),
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
        "vfio/vfio_iommu_type1.c vfio_pin_pages_remote",
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
        "no-guest-binding",
        Program.KERNEL,
        ("No usable S1 MSI mapping found",),
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
        ("ITS queue timeout (%llu %llu)", "ITS queue not draining", "ITS cmd %ps failed"),
        "an ITS does not complete its commands: interrupts are not set up or not moved",
        "irqchip/irq-gic-v3-its.c its_wait_for_range_completion",
        why="it hangs, or a command is invalid, such as for a DeviceID outside its table",
        remedies=("check the pITS and its driver: no strategy can fix it",),
    ),
    Text(
        "its-device-table",
        Program.KERNEL,
        (
            "ITS@%pa: %s Table too large, reduce ids %llu->%u",
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
            "ITS: No ITS available, not enabling LPIs",
        ),
        "an ITS that the firmware describes cannot be used: its devices have no MSIs",
        "irqchip/irq-gic-v3-its.c its_probe_one, its_init",
        remedies=("use devices on another ITS", _FIRMWARE),
    ),
    Text(
        "iort-broken",
        Program.KERNEL,
        (
            "requested ITS ID index [%d] overruns ITS entries [%d]",
            "conflicting mapping for input ID 0x%x",
            "Invalid ID mapping, skipping RMR node %p",
        ),
        "the firmware's IORT contradicts itself: a device has the wrong StreamID, DeviceID or ITS",
        "acpi/arm64/iort.c",
        remedies=(_FIRMWARE,),
    ),
    Text(
        "pci-no-memory",
        Program.KERNEL,
        ("not claimed; can't enable device",),
        "a device cannot be enabled because a BAR has no memory",
        "pci/setup-res.c pci_enable_resources",
        why="in a guest: a device was hot-plugged behind an expander bus without spare memory, and "
        "Linux took the memory of its neighbours",
        remedies=(
            (
                "reserve memory in advance: vmm-msi attach {guest} … --spare-ports N "
                "--spare-memory MIB"
            ),
        ),
    ),
)
