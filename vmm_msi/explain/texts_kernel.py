"""What Linux logs about SMMUs, MSIs and assigned devices, other than the events of an SMMUv3.

Sources are those of Linux 7.2, below ``drivers/``.
"""

from __future__ import annotations

from vmm_msi.explain.explanation import Program
from vmm_msi.explain.known_text import Text

_SMMU = "iommu/arm/arm-smmu-v3/arm-smmu-v3.c"
_SMMU2 = "iommu/arm/arm-smmu/arm-smmu.c"
_VERSION_2 = (
    "an SMMUv1 or SMMUv2 nests nothing under Linux: a nested vSMMU needs a host with SMMUv3"
)
_FIRMWARE = "a firmware update of the host: the table is the firmware's, no strategy changes it"

TEXTS: tuple[Text, ...] = (
    Text(
        "smmu-command-error",
        Program.KERNEL,
        ("CMDQ error (cons 0x%08x): %s",),
        "the SMMU stopped at a command in its queue: {1}",
        f"{_SMMU} __arm_smmu_cmdq_skip_err",
        cases={
            "Illegal command": "the SMMU does not know the command; the driver made it, or a guest "
            "did whose invalidations are passed on",
            "ATC invalidate timeout": "a device with ATS did not answer when its translations were "
            "invalidated: it hangs, was reset or is gone",
            "Abort on command fetch": "the SMMU could not read its queue in memory",
        },
        remedies=(
            (
                "where a device with ATS does not answer: reset it or take it out, and give its "
                "vSMMU no ATS: vmm-msi attach {guest} {device} --vsmmu ats=off"
            ),
        ),
    ),
    Text(
        "smmu-command-timeout",
        Program.KERNEL,
        ("CMD_SYNC timeout at 0x%08x [hwprod 0x%08x, hwcons 0x%08x]", "CMDQ timeout"),
        "the SMMU does not finish its commands",
        f"{_SMMU} arm_smmu_cmdq_issue_cmdlist",
        why="it stopped at an earlier command (look for a CMDQ error before this), or it hangs; "
        "translations that should be gone may still be used",
        remedies=("find the device whose invalidation it waits for, and reset it",),
    ),
    Text(
        "smmu-global-error",
        Program.KERNEL,
        (
            "unexpected global error reported (0x%08x), this could be serious",
            "device has entered Service Failure Mode!",
        ),
        "the SMMU reports an error of its own, of no device",
        f"{_SMMU} arm_smmu_gerror_handler",
        why="what it is, the lines after it say; in Service Failure Mode it ends all accesses",
        remedies=("this is the host's SMMU or its driver, no guest and no strategy mends it",),
    ),
    Text(
        "smmu-events-lost",
        Program.KERNEL,
        (
            "EVTQ overflow detected -- events lost",
            "EVTQ write aborted -- events may have been lost",
        ),
        "the SMMU had more events than its queue holds: faults are missing from the log",
        f"{_SMMU} arm_smmu_evtq_thread",
        why="a device faults again and again, mostly one whose MSIs or DMA find no translation",
        remedies=("mend the fault that is logged most often before it",),
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
        "the SMMU's own interrupt does not arrive, so that its events are not seen in time",
        f"{_SMMU} arm_smmu_gerror_handler, arm_smmu_setup_unique_irqs",
        why="this is the MSI of the SMMU itself, not that of a device",
        remedies=(_FIRMWARE,),
    ),
    Text(
        "smmu-page-request",
        Program.KERNEL,
        ("unexpected PRI request received:",),
        "a device asked for a page (PRI), and nobody handles that",
        f"{_SMMU} arm_smmu_handle_ppr",
        remedies=("give its vSMMU no ATS: vmm-msi attach {guest} {device} --vsmmu ats=off",),
    ),
    Text(
        "smmu-stream-alias",
        Program.KERNEL,
        ("Aliasing StreamID 0x%x (from %s) unsupported, expect DMA to be broken",),
        "two devices have the StreamID 0x{0}, the other one is {1}",
        f"{_SMMU} arm_smmu_insert_master",
        why="they are behind a PCIe-to-PCI bridge, or the firmware maps both to one StreamID; an "
        "SMMUv3 cannot keep them apart",
        remedies=("assign neither of them, or put one into a slot that is not behind that bridge",),
        stream=0,
    ),
    Text(
        "smmu-no-translation",
        Program.KERNEL,
        ("no translation support!", "AArch64 table format not supported!"),
        "the SMMU translates nothing that Linux could use",
        f"{_SMMU} arm_smmu_device_hw_probe",
        remedies=("another host: without both stages there is no nested vSMMU",),
    ),
    Text(
        "smmu-rmr-bypass",
        Program.KERNEL,
        ("RMR SID(0x%x) bypass failed",),
        "StreamID 0x{0} needs a 1:1 mapping by the firmware's word (RMR), and got none",
        f"{_SMMU} arm_smmu_rmr_install_bypass_ste",
        why="the stream table has no room for that StreamID",
        remedies=(_FIRMWARE,),
        stream=0,
    ),
    Text(
        "smmuv2-context-fault",
        Program.KERNEL,
        ("Unhandled context fault: fsr=0x%x, iova=0x%08lx, fsynr=0x%x, cbfrsynra=0x%x, cb=%d",),
        "an SMMUv1 or SMMUv2 has no translation for an address that a device used",
        f"{_SMMU2} arm_smmu_context_fault",
        why="the IOMMU domain of that device does not have the address",
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
        "a device that no IOMMU domain is set up for used an SMMUv1 or SMMUv2",
        f"{_SMMU2} arm_smmu_global_fault",
        why="the firmware does not describe its StreamID, or its driver is not bound yet; what the "
        "text suggests lets every such device access all memory",
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
        "the firmware wants memory mapped 1:1 for this device (an RMR of the host's IORT), so "
        "Linux gives it to no guest",
        "iommu/iommu.c __iommu_device_set_domain",
        why="/sys/kernel/iommu_groups/*/reserved_regions has a region of type direct for it",
        remedies=("assign another device", _FIRMWARE),
    ),
    Text(
        "direct-mapping-failed",
        Program.KERNEL,
        ("IOMMU driver was not able to establish FW requested direct mapping.",),
        "the firmware wants memory mapped 1:1 for this device, and the SMMU's driver could not",
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
        "VFIO does not assign the device: its MSIs are not isolated, it could raise any interrupt "
        "of the host (EPERM)",
        "vfio/vfio_iommu_type1.c vfio_iommu_type1_attach_group",
        why="the device's MSIs go through no ITS, or the ITS does not tell devices apart",
        remedies=(
            "a device whose MSIs go through an ITS: vmm-msi topology show has each device's",
            (
                "where the guest is trusted as the host is: "
                "vfio_iommu_type1.allow_unsafe_interrupts=1 for VFIO's own backend, "
                "iommufd.allow_unsafe_interrupts=1 for iommufd; with it the guest can raise any "
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
        why="iommufd.allow_unsafe_interrupts=1 is set; without it this is refused with EPERM",
        remedies=("a device whose MSIs go through an ITS, and the parameter left at 0",),
    ),
    Text(
        "locked-memory",
        Program.KERNEL,
        ("RLIMIT_MEMLOCK (%ld) exceeded",),
        "a process that assigns devices may lock {0} bytes of memory, and needs more: the guest's "
        "RAM is pinned",
        "vfio/vfio_iommu_type1.c vfio_pin_pages_remote",
        remedies=(
            (
                "<memtune><hard_limit/></memtune> of the RAM and 1 GiB, or LimitMEMLOCK=infinity "
                "in the unit of who starts QEMU"
            ),
        ),
    ),
    Text(
        "virtual-functions-in-use",
        Program.KERNEL,
        ("Cannot bind to PF with SR-IOV enabled",),
        "a device that has virtual functions cannot be assigned itself",
        "vfio/pci/vfio_pci_core.c vfio_pci_core_register_device",
        remedies=("assign a virtual function, or write 0 to its sriov_numvfs",),
    ),
    Text(
        "no-guest-binding",
        Program.KERNEL,
        ("No usable S1 MSI mapping found",),
        "the kernel found no unused doorbell binding of the guest for the device's pITS (ENOMEM)",
        '"SMMUv3 Nested Stage Setup" (2018-2021), iommu_dma_get_nested_msi_page',
        why="bindings belong to the nested IOMMU domain, not to a device: each one leads to one "
        "hDB. With a second pITS and one gIOVA none is left; or it enabled MSIs before it bound",
        missing="S2: gDB -> hDB of the device's pITS",
        stage=2,
        strategies=True,
    ),
    Text(
        "doorbells-of-two-itses",
        Program.KERNEL,
        ("Nested mode forbids to attach devices using different physical MSI doorbells",),
        "a device on another pITS than the devices in the nested IOMMU domain is refused (EINVAL)",
        '"SMMUv3 Nested Stage Setup" (2018-2021), arm_smmu_attach_dev',
        why="one gDB of one S2 leads to one hDB",
        missing="S2: gDB -> hDB of the device's pITS, beside that of the other",
        stage=2,
        strategies=True,
    ),
    Text(
        "its-commands",
        Program.KERNEL,
        ("ITS queue timeout (%llu %llu)", "ITS queue not draining", "ITS cmd %ps failed"),
        "an ITS does not finish its commands: interrupts are not set up or not moved",
        "irqchip/irq-gic-v3-its.c its_wait_for_range_completion",
        why="it hangs, or it met a command it cannot do, such as for a DeviceID beyond its table",
        remedies=("this is the pITS or its driver, no strategy mends it",),
    ),
    Text(
        "its-device-table",
        Program.KERNEL,
        (
            "ITS@%pa: %s Table too large, reduce ids %llu->%u",
            "Supplied DeviceID (%u) outside of Device Table range (%u)!",
        ),
        "an ITS's table has no room for all DeviceIDs: devices beyond it get no MSIs",
        "irqchip/irq-gic-v3-its.c its_parse_indirect_baser, irq-gic-v5-its.c",
        why="DeviceIDs are far apart (several segments on one ITS)",
        remedies=("a kernel with 64K pages, or a device whose DeviceID is lower",),
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
        remedies=("devices on another ITS", _FIRMWARE),
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
        "a device has no memory for a BAR and cannot be enabled",
        "pci/setup-res.c pci_enable_resources",
        why="in a guest: a device was plugged in behind an expander bus without memory to spare, "
        "and Linux took that of its neighbours",
        remedies=(
            (
                "reserve memory from the start: vmm-msi attach {guest} … --spare-ports N "
                "--spare-memory MIB"
            ),
        ),
    ),
)
