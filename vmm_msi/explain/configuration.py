"""Events of an SMMUv3 without an address: the configuration of a device is invalid.

Source: Arm SMMUv3 architecture specification (IHI 0070), 7.3 event records.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmm_msi.iommu.smmu_events import EventKind

_NO_ATS = "disable ATS in its vSMMU: vmm-msi attach {guest} {device} --vsmmu ats=off"
_GUESTS = "fix the guest's driver or kernel: no strategy helps"


@dataclass(frozen=True, slots=True)
class Case:
    """How an event comes about with one kind of user of the device, and what fixes it."""

    why: str
    remedies: tuple[str, ...] = ()


_HOSTS = Case(
    "the host's kernel wrote it: a fault of the kernel, or of the hardware",
    ("update the host's kernel; no strategy helps",),
)
PER_BUS = (
    "or use a QEMU that keeps each vSMMU to its own bus: 10.2, or one with hw/pci/pci.c "
    "pci_setup_iommu_per_bus"
)
#: Linux drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c arm_smmu_ats_supported.
HOST_ATS = Case(
    "its root complex promises ATS in the firmware's tables, or firmware left ATS on in the "
    "device, and the SMMU has it off",
    ("boot the host with pci=noats", "update the host's firmware"),
)
#: The same, with a host whose tables show whether the root complex promises ATS.
HOST_ATS_PROMISED = Case(
    "its root complex promises ATS ({promise}), and the SMMU has it off",
    ("boot the host with pci=noats", "update the host's firmware"),
)
HOST_ATS_LEFT_ON = Case(
    "its root complex does not promise ATS ({promise}), so the host's kernel does not enable it: "
    "firmware or an earlier user of the device left it on",
    ("reset the device", "update the host's firmware"),
)
_GUEST_ATS = Case(
    "the guest's kernel enabled ATS in the device, and the vSMMU or the pSMMU has it off",
    ("set ats='off' in the <driver> of its <iommu>", "or boot the guest with pci=noats"),
)


@dataclass(frozen=True, slots=True)
class Meaning:
    """Meaning of an event.

    :param nested: how it comes about in the host's log for a device behind an accelerated vSMMU.
    :param host: the same for a device of the host's own driver, or of a guest without a vSMMU:
        the host's kernel writes all its tables; None if that makes no difference.
    :param in_guest: the same for an event in the guest's log; None for that of ``nested``.
    """

    what: str
    nested: Case
    host: Case | None = None
    in_guest: Case | None = None


MEANINGS: dict[EventKind, Meaning] = {
    EventKind.F_UUT: Meaning(
        "a transaction of a type that the SMMU does not support",
        Case(
            "the device, or a bridge between it and the SMMU, sends transactions of this type",
            ("use another slot or another device: no strategy helps",),
        ),
        in_guest=Case("the device sends transactions of this type", ("assign another device",)),
    ),
    EventKind.C_BAD_STREAMID: Meaning(
        "the StreamID has no place in the stream table",
        Case(
            "the firmware tables give the device another StreamID than the hardware does, or the "
            "device sends requests with the RequesterID of another function",
            ("compare with the StreamIDs of the firmware tables: vmm-msi topology show",),
        ),
        in_guest=Case(
            "the guest's IORT does not lead from the device's bus to this vSMMU: the device is "
            "behind an expander bus without a vSMMU, and this QEMU lets the vSMMU of pcie.0 "
            "translate for all expander buses",
            (
                (
                    "give that expander bus a vSMMU: <iommu model='smmuv3'> with its pciBus, and "
                    "accel='on' for assigned devices"
                ),
                PER_BUS,
            ),
        ),
    ),
    EventKind.F_STE_FETCH: Meaning(
        "the stream table could not be read",
        Case("the SMMU cannot access this memory", _HOSTS.remedies),
        in_guest=Case("the guest's kernel put it outside of memory", (_GUESTS,)),
    ),
    EventKind.C_BAD_STE: Meaning(
        "the stream table entry is not valid",
        Case(
            "the device has no IOMMU domain: it was detached, or its attach was refused, and its "
            "MSIs and DMA are aborted",
            (
                (
                    "attach it again; if QEMU's log has 'Failed to install STE', fix that first: "
                    "vmm-msi explain < /var/log/libvirt/qemu/{guest}.log"
                ),
            ),
        ),
        host=Case(
            "the host's kernel has no IOMMU domain for the StreamID: the firmware tables do not "
            "have it, or the device was active before its driver",
            ("compare with the StreamIDs of the firmware tables: vmm-msi topology show",),
        ),
        in_guest=Case(
            "the guest's kernel has no IOMMU domain for the device: no driver is bound to it, or "
            "the guest's IORT does not have its StreamID",
            ("bind its driver again in the guest",),
        ),
    ),
    EventKind.F_BAD_ATS_TREQ: Meaning(
        "the device requested a translation (ATS) without permission",
        Case("ATS is enabled in the device but not in the SMMU", (_NO_ATS,)),
        HOST_ATS,
        _GUEST_ATS,
    ),
    EventKind.F_STREAM_DISABLED: Meaning(
        "the SMMU terminates all accesses of the device, or its accesses without a PASID",
        Case(
            "the guest attached it with PASIDs only, or the host blocks it while it is reassigned",
            (_GUESTS,),
        ),
        Case(
            "the host's kernel blocks the device, or its driver attached it with PASIDs only",
            ("bind its driver again, or assign it again",),
        ),
        Case("the guest attached it with PASIDs only", (_GUESTS,)),
    ),
    EventKind.F_TRANSL_FORBIDDEN: Meaning(
        "the device used a translated address (ATS) without permission",
        Case("ATS is enabled in the device but not in the SMMU", (_NO_ATS,)),
        HOST_ATS,
        _GUEST_ATS,
    ),
    EventKind.C_BAD_SUBSTREAMID: Meaning(
        "a PASID that the SMMU does not support for the device",
        Case(
            "the device uses PASIDs of more bits than its vSMMU has, which may be none",
            (
                (
                    "vmm-msi attach {guest} {device} --vsmmu ssidsize=N, where N suits the device "
                    "and pSMMU"
                ),
            ),
        ),
        Case(
            "the device uses a PASID that its driver did not attach",
            ("fix the device's driver: no strategy helps",),
        ),
    ),
    EventKind.F_CD_FETCH: Meaning(
        "the context descriptor could not be read",
        Case("the guest's stream table has an address outside of memory", (_GUESTS,)),
        _HOSTS,
    ),
    EventKind.C_BAD_CD: Meaning(
        "the context descriptor is not valid",
        Case(
            "the guest wrote one with page sizes, address sizes or a table format that the pSMMU "
            "lacks",
            ("use the properties of the pSMMU: omit --vsmmu", _GUESTS),
        ),
        _HOSTS,
        Case(
            "the guest's kernel wrote one with page sizes, address sizes or a table format that "
            "the SMMU lacks",
            ("remove ril, ssidsize and oas from the <driver> of its <iommu>", _GUESTS),
        ),
    ),
    EventKind.F_WALK_EABT: Meaning(
        "a translation table could not be read",
        Case("a table is outside of memory", (_GUESTS,)),
        _HOSTS,
    ),
    EventKind.F_TLB_CONFLICT: Meaning(
        "two translations of one address are cached",
        Case(
            "a table was changed without invalidating cached entries, for example in a block split",
            (_GUESTS,),
        ),
        Case(
            "the host's kernel changed a table without invalidating cached entries",
            _HOSTS.remedies,
        ),
    ),
    EventKind.F_CFG_CONFLICT: Meaning(
        "two configurations of one device are cached",
        Case("a configuration was changed without invalidating cached entries", (_GUESTS,)),
        Case("the host's kernel changed it without invalidating cached entries", _HOSTS.remedies),
    ),
    EventKind.E_PAGE_REQUEST: Meaning(
        "the device sent a page request (PRI)",
        Case("no driver handles page requests of assigned devices", (_NO_ATS,)),
        Case(
            "no driver handles page requests of this device",
            ("boot the host with pci=noats: without ATS, a device sends none",),
        ),
        Case("the guest's kernel does not handle them", _GUEST_ATS.remedies),
    ),
    EventKind.F_VMS_FETCH: Meaning(
        "the virtual machine structure could not be read",
        Case("the SMMU cannot access this memory", _HOSTS.remedies),
        in_guest=Case("the guest's kernel put it outside of memory", (_GUESTS,)),
    ),
}
