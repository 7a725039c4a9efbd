"""Events of an SMMUv3 without an address: the configuration of a device is invalid.

Source: Arm SMMUv3 architecture specification (IHI 0070), 7.3 event records.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmm_msi.iommu.smmu_events import EventKind

_NO_ATS = "disable ATS in its vSMMU: vmm-msi attach {guest} {device} --vsmmu ats=off"
_GUESTS = "fix the guest's driver or kernel: no strategy helps"


@dataclass(frozen=True, slots=True)
class Meaning:
    """Meaning of an event.

    :param why: how it comes about behind a nested vSMMU.
    :param remedies: changes that fix it.
    """

    what: str
    why: str
    remedies: tuple[str, ...] = ()


MEANINGS: dict[EventKind, Meaning] = {
    EventKind.F_UUT: Meaning(
        "a transaction of a type that the SMMU does not support",
        "the device, or a bridge between it and the SMMU, sends transactions of this type",
        ("use another slot or another device: no strategy helps",),
    ),
    EventKind.C_BAD_STREAMID: Meaning(
        "the StreamID is larger than the stream table",
        "on the host: the firmware tables give the device another StreamID than the hardware does. "
        "In a guest: its SMMU driver does not know the bus that the device is behind",
        ("compare with the StreamIDs of the firmware tables: vmm-msi topology show",),
    ),
    EventKind.F_STE_FETCH: Meaning(
        "the stream table could not be read",
        "the SMMU cannot access this memory",
    ),
    EventKind.C_BAD_STE: Meaning(
        "the stream table entry is not valid",
        "the device has no IOMMU domain: it was detached, or its attach was refused, and its MSIs "
        "and DMA are aborted",
        (
            (
                "attach it again; if QEMU's log has 'Failed to install STE', fix that first: "
                "vmm-msi explain < /var/log/libvirt/qemu/{guest}.log"
            ),
        ),
    ),
    EventKind.F_BAD_ATS_TREQ: Meaning(
        "the device requested a translation (ATS) without permission",
        "ATS is enabled in the device but not in the SMMU",
        (_NO_ATS,),
    ),
    EventKind.F_STREAM_DISABLED: Meaning(
        "the SMMU terminates all accesses of the device, or its accesses without a PASID",
        "the guest attached it with PASIDs only, or the host blocks it while it is reassigned",
        (_GUESTS,),
    ),
    EventKind.F_TRANSL_FORBIDDEN: Meaning(
        "the device used a translated address (ATS) without permission",
        "ATS is enabled in the device but not in the SMMU",
        (_NO_ATS,),
    ),
    EventKind.C_BAD_SUBSTREAMID: Meaning(
        "a PASID that the vSMMU does not support",
        "the device uses PASIDs of more bits than its vSMMU has, which may be none",
        ("vmm-msi attach {guest} {device} --vsmmu ssidsize=N, where N suits the device and pSMMU",),
    ),
    EventKind.F_CD_FETCH: Meaning(
        "the context descriptor could not be read",
        "the guest's stream table has an address outside of memory",
        (_GUESTS,),
    ),
    EventKind.C_BAD_CD: Meaning(
        "the context descriptor is not valid",
        "the guest wrote one with page sizes, address sizes or a table format that the pSMMU lacks",
        ("use the properties of the pSMMU: omit --vsmmu", _GUESTS),
    ),
    EventKind.F_WALK_EABT: Meaning(
        "a translation table could not be read",
        "a table is outside of memory",
        (_GUESTS,),
    ),
    EventKind.F_TLB_CONFLICT: Meaning(
        "two translations of one address are cached",
        "a table was changed without invalidating cached entries, for example in a block split",
        (_GUESTS,),
    ),
    EventKind.F_CFG_CONFLICT: Meaning(
        "two configurations of one device are cached",
        "a configuration was changed without invalidating cached entries",
        (_GUESTS,),
    ),
    EventKind.E_PAGE_REQUEST: Meaning(
        "the device sent a page request (PRI)",
        "no driver handles page requests of assigned devices",
        (_NO_ATS,),
    ),
    EventKind.F_VMS_FETCH: Meaning(
        "the virtual machine structure could not be read",
        "the SMMU cannot access this memory",
    ),
}
