"""Events of an SMMUv3 that are about no address: what it looked up for a device was not in order.

Source: Arm SMMUv3 architecture specification (IHI 0070), 7.3 event records.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmm_msi.iommu.smmu_events import EventKind

_NO_ATS = "give its vSMMU no ATS: vmm-msi attach {guest} {device} --vsmmu ats=off"
_GUESTS = "the guest's driver or its kernel: no strategy mends it"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an event says.

    :param why: how it comes about behind a nested vSMMU.
    """

    what: str
    why: str
    remedies: tuple[str, ...] = ()


MEANINGS: dict[EventKind, Meaning] = {
    EventKind.F_UUT: Meaning(
        "a transaction of a kind that the SMMU does not take",
        "the device, or a bridge before the SMMU, sends what the SMMU has no form for",
        ("another slot or another device: no strategy mends it",),
    ),
    EventKind.C_BAD_STREAMID: Meaning(
        "the StreamID is larger than the stream table",
        "on the host: the firmware's tables give the device another StreamID than the hardware "
        "does. In a guest: the device is behind a bus that its SMMU driver does not know of",
        ("vmm-msi topology show has the StreamIDs by the firmware's tables",),
    ),
    EventKind.F_STE_FETCH: Meaning(
        "the stream table could not be read",
        "memory that the SMMU cannot reach",
    ),
    EventKind.C_BAD_STE: Meaning(
        "the stream table entry is not valid",
        "nothing is attached to the device: it was detached, or its attach was refused, and its "
        "MSIs and DMA are aborted",
        (
            (
                "attach it again; where QEMU's log says 'Failed to install STE', mend that: "
                "vmm-msi explain < /var/log/libvirt/qemu/{guest}.log"
            ),
        ),
    ),
    EventKind.F_BAD_ATS_TREQ: Meaning(
        "the device asked for a translation (ATS), and may not",
        "ATS is on in the device and off in the SMMU",
        (_NO_ATS,),
    ),
    EventKind.F_STREAM_DISABLED: Meaning(
        "the device is switched off in the SMMU, or used a PASID-less access where none may be",
        "the guest attached it with PASIDs alone, or the host blocks it while it changes hands",
        (_GUESTS,),
    ),
    EventKind.F_TRANSL_FORBIDDEN: Meaning(
        "the device used an address that it says is translated (ATS), and may not",
        "ATS is on in the device and off in the SMMU",
        (_NO_ATS,),
    ),
    EventKind.C_BAD_SUBSTREAMID: Meaning(
        "a PASID that the vSMMU has no room for",
        "the device uses PASIDs, and its vSMMU has fewer bits for them, or none",
        ("vmm-msi attach {guest} {device} --vsmmu ssidsize=N, N as the device and pSMMU have",),
    ),
    EventKind.F_CD_FETCH: Meaning(
        "the context descriptor could not be read",
        "the address that the guest has in its stream table is no memory",
        (_GUESTS,),
    ),
    EventKind.C_BAD_CD: Meaning(
        "the context descriptor is not valid",
        "the guest wrote one that the pSMMU does not take: with page sizes, address sizes or a "
        "table format it lacks",
        ("properties of the vSMMU as the pSMMU has them: leave --vsmmu out", _GUESTS),
    ),
    EventKind.F_WALK_EABT: Meaning(
        "a translation table could not be read",
        "a table is where no memory is",
        (_GUESTS,),
    ),
    EventKind.F_TLB_CONFLICT: Meaning(
        "two translations of one address are cached",
        "a table was changed without invalidating what was cached, for instance a block split",
        (_GUESTS,),
    ),
    EventKind.F_CFG_CONFLICT: Meaning(
        "two configurations of one device are cached",
        "a configuration was changed without invalidating what was cached",
        (_GUESTS,),
    ),
    EventKind.E_PAGE_REQUEST: Meaning(
        "the device asked for a page (PRI)",
        "nobody handles page requests of an assigned device",
        (_NO_ATS,),
    ),
    EventKind.F_VMS_FETCH: Meaning(
        "the virtual machine structure could not be read",
        "memory that the SMMU cannot reach",
    ),
}
