"""Linux log messages about SMMUs and translation tables, except SMMUv3 events.

Source files are those of Linux 7.2, below ``drivers/``; earlier words are those of Linux
4.4 to 6.6.
"""

from __future__ import annotations

from vmm_msi.explain.explanation import Program
from vmm_msi.explain.in_guest import FIRMWARE, VSMMU_ERROR
from vmm_msi.explain.known_text import Case, Text

_SMMU = "iommu/arm/arm-smmu-v3/arm-smmu-v3.c"
_SMMU2 = "iommu/arm/arm-smmu/arm-smmu.c"
_CMDQV = "iommu/arm/arm-smmu-v3/tegra241-cmdqv.c"
_VERSION_2 = "use a host with an SMMUv3: Linux does not nest on SMMUv1 and SMMUv2"
_UNIDENTIFIED = (
    "its StreamID has no entry (unidentified stream fault): the firmware does not describe it, or "
    "it has no driver yet"
)
_INVALID_CONTEXT = "its StreamID is mapped to a context bank that is not in use"
_CONFLICT = "several entries match its StreamID (stream match conflict)"

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
        older=("CMD_SYNC timeout",),
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
        in_guest={"": VSMMU_ERROR},
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
            "no gerr irq - errors will not be reported!",
            "failed to enable evtq irq",
            "failed to enable gerror irq",
            "failed to enable combined irq",
        ),
        "the SMMU's own interrupt is not delivered, so its events are reported late or never",
        f"{_SMMU} arm_smmu_gerror_handler, arm_smmu_setup_unique_irqs",
        why="this is an MSI of the SMMU itself, not of a device",
        remedies=(FIRMWARE,),
    ),
    Text(
        "smmu-page-request",
        Program.KERNEL,
        (
            "unexpected PRI request received:",
            "PRIQ overflow detected -- requests lost",
            "PRIQ write aborted -- events may have been lost",
        ),
        "a device sent a page request (PRI), which no driver handles",
        f"{_SMMU} arm_smmu_handle_ppr",
        remedies=("disable ATS in its vSMMU: vmm-msi attach {guest} {device} --vsmmu ats=off",),
    ),
    Text(
        "smmu-stream-alias",
        Program.KERNEL,
        ("Aliasing StreamID 0x%x (from %s) unsupported, expect DMA to be broken",),
        "two devices share StreamID 0x{0}; newer kernels name the other one",
        f"{_SMMU} arm_smmu_insert_master",
        why="they are behind a PCIe-to-PCI bridge, or the firmware maps both to one StreamID; an "
        "SMMUv3 cannot distinguish them",
        remedies=("assign neither, or move one of them to a slot that is not behind that bridge",),
        stream="StreamID 0x",
        older=("Aliasing StreamID 0x%x unsupported, expect DMA to be broken",),
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
        remedies=(FIRMWARE,),
        stream="SID(0x",
    ),
    Text(
        "smmu-probe-failed",
        Program.KERNEL,
        (
            "failed to enable SMMU interface",
            "failed to enable command queue",
            "failed to enable event queue",
            "failed to clear cr0",
            "GBPA not responding to update",
            "embedded implementation not supported",
            "command queue size <= %d entries not supported",
            "unknown/unsupported TT endianness!",
            "missing #iommu-cells property",
            "MMIO region too small (%pr)",
            "probe with driver arm-smmu-v3 failed with error %d",
            "probe with driver arm-smmu failed with error %d",
        ),
        "an SMMU is not used: its devices have no IOMMU group and cannot be assigned",
        f"{_SMMU} arm_smmu_device_probe; base/dd.c call_driver_probe",
        why="its driver gave up, because the SMMU does not respond, lacks a feature or is "
        "described wrongly",
        remedies=(FIRMWARE, "use devices behind another SMMU: vmm-msi topology show"),
        older=(
            "arm-smmu-v3: probe of %s failed with error %d",
            "arm-smmu: probe of %s failed with error %d",
        ),
    ),
    Text(
        "smmu-stream-table",
        Program.KERNEL,
        (
            "failed to allocate l2 stream table for SID %u",
            "failed to allocate l1 stream table (%u bytes)",
            "failed to allocate linear stream table (%u bytes)",
            "2-level strtab only covers %u/%u bits of SID",
        ),
        "the SMMU's stream table does not have room for all StreamIDs",
        f"{_SMMU} arm_smmu_init_strtab_2lvl, arm_smmu_init_l2_strtab",
        why="a device whose StreamID is not in the table has no IOMMU group",
        remedies=("use a device with a lower StreamID: vmm-msi topology show",),
    ),
    Text(
        "smmu-ats-failed",
        Program.KERNEL,
        ("Failed to enable ATS (STU %zu)",),
        "the device has no ATS: its DMA and its MSIs work without",
        f"{_SMMU} arm_smmu_enable_ats",
        why="ATS is enabled already with another page size, such as by the physical function",
        remedies=("nothing has to be fixed; ats=off in its vSMMU avoids the attempt",),
    ),
    Text(
        "smmu-kdump",
        Program.KERNEL,
        ("SMMU currently enabled! Resetting...",),
        "the SMMU was on already when Linux started: the firmware or a crashed kernel used it",
        f"{_SMMU} arm_smmu_device_reset",
        why="accesses of devices that are still active fault until their drivers start",
        remedies=("nothing has to be fixed if the devices work later",),
    ),
    Text(
        "cmdqv-error",
        Program.KERNEL,
        (
            "tegra241_cmdqv: unexpected error reported. %s",
            "tegra241_cmdqv: %suncleared error detected, resetting",
            "tegra241_cmdqv: %sGERRORN=0x%X, GERROR=0x%X, CONS=0x%X",
            "tegra241_cmdqv: %sfailed to %sable, STATUS=0x%08X",
        ),
        "a command queue of the CMDQV extension (NVIDIA Grace) stopped: invalidations of the host, "
        "or of a guest with cmdqv=on, are not done",
        f"{_CMDQV} tegra241_cmdqv_isr, tegra241_vcmdq_hw_deinit",
        why="it stopped at a command that it does not support, or could not read its queue in "
        "memory",
        remedies=(
            "give the guest a vSMMU without queues of its own: <driver cmdqv='off'/>",
            "for the host's queue, boot with arm_smmu_v3.disable_cmdqv=y",
        ),
    ),
    Text(
        "cmdqv-fallback",
        Program.KERNEL,
        (
            "tegra241_cmdqv: Falling back to standard SMMU CMDQ",
            "tegra241_cmdqv: failed to init vintf0: %d",
            "tegra241_cmdqv: no memory resource found for CMDQV",
            "tegra241_cmdqv: no interrupt. errors will not be reported",
            "tegra241_cmdqv: failed to ioremap",
        ),
        "the CMDQV extension (NVIDIA Grace) of the SMMU is not used: guests cannot have cmdqv=on",
        f"{_CMDQV} tegra241_cmdqv_probe, __tegra241_cmdqv_probe",
        why="the firmware describes it incompletely; MSIs and DMA work without it",
        remedies=(FIRMWARE, "or attach without cmdqv: --vsmmu cmdqv=off"),
    ),
    Text(
        "cmdqv-full",
        Program.KERNEL,
        ("tegra241_cmdqv: no more available vintf",),
        "all virtual interfaces of the CMDQV extension are taken by guests",
        f"{_CMDQV} tegra241_cmdqv_init_vintf_user",
        remedies=("attach without cmdqv: --vsmmu cmdqv=off; or stop another guest that uses it",),
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
        iova="iova=0x",
        stream="cbfrsynra=0x",
        stream_mask=0xFFFF,
        older=(
            "Unhandled context fault: fsr=0x%x, iova=0x%08lx, fsynr=0x%x, cb=%d",
            "Unhandled context fault: iova=0x%08lx, fsynr=0x%x, cb=%d",
            "Unhandled context fault: iova=0x%08lx, fsr=0x%x, fsynr=0x%x, cb=%d",
        ),
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
        remedies=(FIRMWARE, _VERSION_2),
        stream="Stream ID 0x",
        older=('Blocked unknown Stream ID 0x%hx; boot with "',),
    ),
    Text(
        "smmuv2-global-fault",
        Program.KERNEL,
        (
            "Unexpected global fault, this could be serious",
            "GFSR 0x%08x, GFSYNR0 0x%08x, GFSYNR1 0x%08x, GFSYNR2 0x%08x",
        ),
        "an SMMUv1 or SMMUv2 refused an access before it chose a translation; GFSYNR1 in the next "
        "line has the StreamID",
        f"{_SMMU2} arm_smmu_global_fault; Arm IHI 0062, SMMU_sGFSR",
        cases={
            "GFSR 0x80000002": Case(_UNIDENTIFIED),
            "GFSR 0x00000002": Case(_UNIDENTIFIED),
            "GFSR 0x80000001": Case(_INVALID_CONTEXT),
            "GFSR 0x00000001": Case(_INVALID_CONTEXT),
            "GFSR 0x80000004": Case(_CONFLICT),
            "GFSR 0x00000004": Case(_CONFLICT),
        },
        why="usually its StreamID has no entry: the firmware does not describe it, or it has no "
        "driver yet",
        remedies=(FIRMWARE, _VERSION_2),
        stream="GFSYNR1 0x",
        stream_mask=0xFFFF,
    ),
    Text(
        "smmuv2-tlb-timeout",
        Program.KERNEL,
        ("TLB sync timed out -- SMMU may be deadlocked",),
        "an SMMUv1 or SMMUv2 does not complete an invalidation",
        f"{_SMMU2} __arm_smmu_tlb_sync",
        why="it waits for a device that does not respond, or its clock or power is off",
        remedies=("reset the device that faulted last",),
    ),
    Text(
        "smmuv2-stream-range",
        Program.KERNEL,
        (
            "stream ID 0x%x out of range for SMMU (0x%x)",
            "SMR mask 0x%x out of range for SMMU (0x%x)",
        ),
        "an SMMUv1 or SMMUv2 does not have as many StreamIDs as the firmware gives a device",
        f"{_SMMU2} arm_smmu_probe_device",
        why="the device has no IOMMU group, so it cannot be assigned",
        remedies=(FIRMWARE,),
        stream="stream ID 0x",
    ),
    Text(
        "iommu-group-failed",
        Program.KERNEL,
        (
            "Failed to add to iommu group %d: %d",
            (
                "IOMMU driver error, requesting conflicting def_domain_type, %s and %s, for "
                "devices in group %u."
            ),
        ),
        "a device did not get an IOMMU domain: it cannot be assigned",
        "iommu/iommu.c iommu_init_device, iommu_get_default_domain_type",
        remedies=("look for an earlier error of the SMMU's driver or of the firmware's tables",),
        older=("Failed to set up IOMMU for device %s; retaining platform DMA ops",),
    ),
    Text(
        "iommu-unaligned",
        Program.KERNEL,
        (
            "unaligned: iova 0x%lx pa %pa size 0x%zx min_pagesz 0x%x",
            "unaligned: iova 0x%lx size 0x%zx min_pagesz 0x%x",
        ),
        "a mapping was refused: it is not a multiple of the IOMMU's smallest page",
        "iommu/iommu.c iommu_map_nosync, __iommu_unmap",
        why="host and guest, or the host and its SMMU, have different page sizes; a doorbell of a "
        "guest with 4K pages cannot be mapped alone where the smallest page has 64K",
        remedies=("use one page size for the host's kernel, the guest's kernel and the binding",),
        iova="iova 0x",
    ),
    Text(
        "io-pgtable",
        Program.KERNEL,
        ("WARNING: drivers/iommu/io-pgtable-arm.c:%d at %s",),
        "Linux refused to change a translation table of an SMMU",
        "iommu/io-pgtable-arm.c arm_lpae_init_pte, __arm_lpae_unmap",
        cases={
            "unmap": Case(
                "an address that is not mapped should be unmapped, or a part of a block (EINVAL)"
            ),
            "map": Case(
                "the address is mapped already (EEXIST): for a doorbell, a second device or a "
                "second program bound it; or the address is too large for the table"
            ),
        },
        why="the address is mapped already, or is too large for the table",
        remedies=(
            "look which program maps the address twice: bind each doorbell once for each stage 2",
        ),
        older=("WARNING: CPU: %d PID: %d at drivers/iommu/io-pgtable-arm.c:%d %s",),
    ),
)
