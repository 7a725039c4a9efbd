"""What an event of an SMMUv3 means: which link of gIOVA -S1-> gDB -S2-> hDB is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.explain import related_findings
from vmm_msi.explain.address_kinds import At, Place, at_iova, at_ipa, vitses
from vmm_msi.explain.configuration import MEANINGS
from vmm_msi.explain.explanation import Explanation, Program, Remedy, Subject
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.types import SW_MSI_WINDOW

if TYPE_CHECKING:
    from vmm_msi.explain.remedies import StrategyRemedies
    from vmm_msi.explain.situation import Situation
    from vmm_msi.types import HostDevice, PciAddress

_SOURCE = "Arm IHI 0070, 7.3; Linux drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c arm_smmu_dump_event"
_DMA = "ordinary DMA of the device, not an MSI: no strategy mends it"
_WORDS = {
    EventKind.F_TRANSLATION: "no translation",
    EventKind.F_ADDR_SIZE: "an address that is too large",
    EventKind.F_ACCESS: "a translation whose access flag is not set",
    EventKind.F_PERMISSION: "a translation that does not permit the access",
}


@dataclass(frozen=True, slots=True)
class Cause:
    """How a fault comes about.

    :param strategies: strategies can mend it.
    :param ignores_rmr: it shows that the guest does not map the window.
    :param findings: ids of the doctor's findings about the same thing.
    """

    why: str
    missing: str = ""
    remedies: tuple[str, ...] = ()
    strategies: bool = False
    ignores_rmr: bool = False
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Logged:
    """An event as it was found.

    :param event: what it says; None for one that the architecture does not have, and for one that
        was only announced.
    :param number: its number.
    :param smmu: what the driver calls the SMMU; empty where that was not said.
    :param client: the device as the driver names it, a PCI address mostly.
    :param access: what the driver says of the access, ``unpriv data write``.
    """

    number: int
    event: SmmuEvent | None
    smmu: str = ""
    client: PciAddress | None = None
    access: str = ""


def explain_event(
    logged: Logged, situation: Situation, strategies: StrategyRemedies | None
) -> Explanation:
    """Return what an event means, as far as the situation tells."""
    event = logged.event
    if event is None and logged.number in list(EventKind):
        return _announced(EventKind(logged.number))
    if event is None:
        return Explanation(
            id="smmu-event-unknown",
            program=Program.KERNEL,
            what=f"event {logged.number:#04x}, which the architecture does not have: it is of the "
            "SMMU's maker",
            source=_SOURCE,
        )
    subjects = subjects_of(logged, situation)
    device = situation.host_device(subjects[0].address) if len(subjects) == 1 else None
    names = {
        "guest": situation.guest_name if situation.guest is not None else "GUEST",
        "device": str(device.address) if device is not None else "DEVICE",
    }
    shown = f"event {event.kind.name}"
    if not event.stage:
        meaning = MEANINGS[event.kind]
        return Explanation(
            id=f"smmu-{event.kind.name}",
            program=Program.KERNEL,
            what=f"{shown}: {meaning.what}",
            devices=subjects,
            stream=event.stream_id,
            why=meaning.why,
            remedies=tuple(Remedy(each.format(**names)) for each in meaning.remedies),
            source=_SOURCE,
        )
    iova = at_iova(event.iova, device, situation)
    ipa = None if event.ipa is None else at_ipa(event.ipa, device, situation)
    if ipa is not None and ipa.place is Place.GDB and iova.place is Place.UNKNOWN:
        iova = At(Place.GIOVA, "gIOVA, what the guest's stage 1 maps to its doorbell", msi=True)
    cause = _cause(event, iova, ipa, device, situation)
    remedies = [Remedy(each.format(**names)) for each in cause.remedies]
    if cause.strategies and strategies is not None:
        address = subjects[0].address if len(subjects) == 1 else None
        remedies += strategies.remedies(address, ignores_rmr=cause.ignores_rmr)
    whose = "the host's tables" if event.stage == 2 else _owner(device, situation)
    on = ", read for a stage 1 table," if event.table_walk else ""
    access = f" ({logged.access})" if logged.access else ""
    return Explanation(
        id=f"smmu-{event.kind.name}",
        program=Program.KERNEL,
        what=f"{shown} at stage {event.stage}: {whose} have {_WORDS[event.kind]}{on}{access}",
        devices=subjects,
        stream=event.stream_id,
        stage=event.stage,
        iova=event.iova,
        iova_is=iova.words,
        ipa=event.ipa,
        ipa_is="" if ipa is None else ipa.words,
        missing=cause.missing,
        why=cause.why,
        remedies=tuple(remedies),
        findings=cause.findings,
        source=_SOURCE,
    )


def _announced(kind: EventKind) -> Explanation:
    """Return what an event means of which only the first line is there."""
    meaning = MEANINGS.get(kind)
    what = f"the tables have {_WORDS[kind]}" if meaning is None else meaning.what
    return Explanation(
        id=f"smmu-{kind.name}",
        program=Program.KERNEL,
        what=f"event {kind.name}: {what}",
        why="device, address and stage are in the lines after it, which are not here",
        remedies=(Remedy("give those as well: dmesg | vmm-msi explain"),),
        source=_SOURCE,
    )


def subjects_of(logged: Logged, situation: Situation) -> tuple[Subject, ...]:
    """Return the devices that an event may be of."""
    if logged.client is not None:
        if situation.in_guest:
            return (situation.by_guest_address(logged.client),)
        return (situation.subject(logged.client),)
    if logged.event is None:
        return ()
    return situation.by_stream(logged.event.stream_id, logged.smmu)


def _cause(
    event: SmmuEvent, iova: At, ipa: At | None, device: HostDevice | None, situation: Situation
) -> Cause:
    if event.kind is EventKind.F_PERMISSION:
        return _permission(event, iova if ipa is None else ipa)
    if event.kind is EventKind.F_ACCESS:
        return Cause(
            "the table has an entry that was never accessed, and the SMMU does not set the flag",
            remedies=("the guest's kernel: no strategy mends it",),
        )
    if event.kind is EventKind.F_ADDR_SIZE:
        return _size(event)
    if event.stage == 1:
        return _stage1(event, iova, device, situation)
    return _stage2(event, ipa, device, situation)


def _stage1(event: SmmuEvent, at: At, device: HostDevice | None, situation: Situation) -> Cause:
    page = event.iova.align_down(0x1000)
    if not _is_assigned(device, situation):
        return Cause(
            f"the device is not in {situation.guest_name}, so stage 1 is the host's own: its "
            "driver did not map what the device uses",
            remedies=("the device's driver on the host: no strategy mends it",),
        )
    if at.place is Place.SLOT:
        window = SW_MSI_WINDOW
        return Cause(
            "the host's kernel programmed the device with an address of its SW MSI window, and the "
            "guest's stage 1 does not map the window 1:1: the guest was not told of it by an RMR, "
            "or does not heed it",
            f"S1: {page} -> {page}, of the window {window.base:#x}-{window.last:#x}",
            strategies=True,
            ignores_rmr=True,
            findings=related_findings.WINDOW,
        )
    if at.place is Place.BEYOND:
        return Cause(
            "the host's kernel gives each pITS of one iommufd file descriptor a page of the "
            "window, and this one lies behind the 1 MiB that the RMR covers",
            f"S1: {page} -> {page}",
            remedies=(
                (
                    "fewer pITSes in one guest: 16 with 64K pages, 64 with 4K; assign devices of "
                    "the same pITSes, or divide them among guests"
                ),
                "a host kernel with 4K pages",
            ),
            findings=related_findings.BEYOND,
        )
    if at.place is Place.OTHER_GIOVA:
        return Cause(
            f"the device was programmed with the gIOVA of {at.owner}: a binding belongs to the "
            "nested IOMMU domain, and the kernel takes one whichever device it came from",
            f"S1 of the device: {page} -> gDB",
            strategies=True,
        )
    if at.place is Place.GIOVA:
        return Cause(
            "the address is the right one, and the guest's stage 1 has no entry for it any more: "
            "the guest freed the interrupt or the table, or did not finish setting it up",
            f"S1: {page} -> {vitses(situation)[0].gdb}",
            remedies=("the guest's driver: no strategy mends it; in the guest, bind it again",),
        )
    if at.place is Place.GDB:
        return Cause(
            "the device was programmed with gDB itself, as if it had no stage 1; the guest's "
            "stage 1 maps a gIOVA to it",
            f"S1: {page} -> {page}",
            strategies=True,
            ignores_rmr=True,
        )
    if at.place is Place.HDB:
        return _bare_doorbell(f"S1: {page} -> {page}")
    if at.msi:
        return Cause(
            "it looks like an MSI with a gIOVA: an address that was programmed into the device, "
            "and the guest's stage 1 does not have it: that of another device, or one of before "
            "the guest changed its mapping",
            f"S1 of the device: {page} -> gDB",
            strategies=True,
        )
    return Cause(
        "the driver did not map what the device uses, or unmapped it too early",
        f"S1: {page} -> an IPA of the guest's choice",
        remedies=(_DMA,),
    )


def _stage2(
    event: SmmuEvent, at: At | None, device: HostDevice | None, situation: Situation
) -> Cause:
    if at is None or event.ipa is None:
        return Cause("stage 2 does not have what was asked for")
    page = event.ipa.align_down(situation.granule or 0x1000)
    doorbell = _hdb(device, situation)
    if event.table_walk:
        return Cause(
            "the guest put a stage 1 table where it has no RAM for stage 2, so that nothing the "
            "device does is translated",
            f"S2: {page} -> the guest's memory",
            remedies=("the guest's RAM has to be in stage 2: see QEMU's log for a failed mapping",),
        )
    if at.place is Place.GDB:
        return Cause(
            "the guest's stage 1 leads to its own doorbell, and stage 2 does not lead on from it: "
            "nobody told the host's kernel of gDB",
            f"S2: {page} (gDB) -> {doorbell}",
            strategies=True,
        )
    if at.place in {Place.SLOT, Place.BEYOND}:
        return Cause(
            "stage 1 passed an address of the SW MSI window, and this stage 2 does not have that "
            "page: the kernel mapped it in another stage 2, or took it out when the device changed "
            "hands",
            f"S2: {page} -> {doorbell}",
            remedies=("have the guest enable the interrupt anew: bind its driver again",),
            strategies=True,
        )
    if at.place is Place.HDB:
        return _bare_doorbell(f"S2: {page} -> {page}")
    if at.place is Place.RAM:
        return Cause(
            "it is RAM of the guest, and stage 2 does not have it: mapping it failed, or it was "
            "plugged out",
            f"S2: {page} -> the guest's memory",
            remedies=("QEMU's log has why: vmm-msi explain < /var/log/libvirt/qemu/{guest}.log",),
        )
    return Cause(
        "the guest's stage 1 leads the device to an IPA where nothing is: a BAR of another device "
        "(peer-to-peer DMA), or a wrong entry of the guest's",
        f"S2: {page} -> nothing that is known",
        remedies=(_DMA,),
    )


def _bare_doorbell(missing: str) -> Cause:
    return Cause(
        "the host's kernel programmed the device with the doorbell's own address, as it does where "
        "the device has no SW MSI window: /sys/kernel/iommu_groups/*/reserved_regions",
        missing,
        remedies=("a device of another host: nested translation needs a SW MSI window",),
        findings=related_findings.NO_WINDOW,
    )


def _permission(event: SmmuEvent, at: At) -> Cause:
    if event.stage == 1:
        return Cause(
            "the guest mapped it read-only, and the device writes",
            f"S1: {event.iova.align_down(0x1000)}, with write permission",
            remedies=("the guest's driver: no strategy mends it",),
        )
    page = "it" if event.ipa is None else str(event.ipa.align_down(0x1000))
    if at.place in {Place.GDB, Place.SLOT, Place.HDB}:
        return Cause(
            "whoever mapped the doorbell in stage 2 did it without write permission, and an MSI is "
            "a write",
            f"S2: {page} -> hDB, with write permission (IOMMU_IOAS_MAP_WRITEABLE)",
            strategies=True,
        )
    return Cause(
        "it is mapped read-only in stage 2, as ROM and firmware images are",
        f"S2: {page}, with write permission",
        remedies=(_DMA,),
    )


def _size(event: SmmuEvent) -> Cause:
    if event.stage == 1:
        return Cause(
            "the guest's stage 1 has an entry with an IPA that its vSMMU, or the pSMMU, cannot put "
            "out",
            remedies=(
                "vmm-msi attach {guest} {device} --vsmmu oas=44, the size that each pSMMU has",
            ),
        )
    return Cause(
        "the IPA is larger than stage 2 takes: the vSMMU promises more bits than the pSMMU has",
        remedies=("vmm-msi attach {guest} {device} --vsmmu oas=44, the size that each pSMMU has",),
    )


def _is_assigned(device: HostDevice | None, situation: Situation) -> bool:
    """Tell whether a device may be the guest's: it is, or nothing is known."""
    if device is None or situation.guest is None:
        return True
    return situation.guest_device(device.address) is not None


def _owner(device: HostDevice | None, situation: Situation) -> str:
    """Say whose stage 1 tables a device goes through."""
    if situation.in_guest or (device is not None and situation.guest is not None):
        assigned = _is_assigned(device, situation)
        return "the guest's tables" if assigned else "the host's own tables"
    return "the tables (the guest's, if the device is assigned)"


def _hdb(device: HostDevice | None, situation: Situation) -> str:
    if device is not None and device.its_group and situation.host is not None:
        its = situation.host.its_by_id.get(device.its)
        if its is not None:
            return f"{its.doorbell} (hDB, ITS {its.id})"
    return "hDB"
