"""Events of an SMMUv3 on a host, for a guest: the missing link of gIOVA -S1-> gDB -S2-> hDB."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.explain import related_findings
from vmm_msi.explain.address_kinds import (
    AddressKind,
    DescribedAddress,
    describe_iova,
    describe_ipa,
    vitses,
)
from vmm_msi.explain.configuration import MEANINGS
from vmm_msi.explain.explanation import Explanation, Program, Remedy, Subject
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.types import SW_MSI_WINDOW

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm_msi.explain.log_context import LogContext
    from vmm_msi.explain.remedies import StrategyRemedies
    from vmm_msi.types import HostDevice, PciAddress

_SOURCE = "Arm IHI 0070, 7.3; Linux drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c arm_smmu_dump_event"
_FAULTS = {
    EventKind.F_TRANSLATION: "no translation",
    EventKind.F_ADDR_SIZE: "an address that is too large",
    EventKind.F_ACCESS: "a translation whose access flag is clear",
    EventKind.F_PERMISSION: "a translation that does not permit the access",
}


@dataclass(frozen=True, slots=True)
class Cause:
    """How a fault comes about.

    ``why``, ``missing`` and ``remedies`` may have the placeholders of :func:`_placeholders`.

    :param missing: the mapping that is missing.
    :param remedies: changes that fix it.
    :param strategies: another strategy may fix it.
    :param ignores_rmr: it shows that the guest does not map the MSI window.
    :param findings: ids of the doctor's findings about the same problem.
    """

    why: str
    missing: str = ""
    remedies: tuple[str, ...] = ()
    strategies: bool = False
    ignores_rmr: bool = False
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Logged:
    """An event as a log shows it.

    :param number: its number.
    :param event: the decoded event; None if the architecture does not define it, or if the log has
        only its first line.
    :param smmu: the driver's name of the SMMU; empty if the log does not have it.
    :param client: the device as the driver names it, mostly a PCI address.
    :param access: the driver's words for the access, ``unpriv data write``.
    """

    number: int
    event: SmmuEvent | None
    smmu: str = ""
    client: PciAddress | None = None
    access: str = ""


_DMA = "check the device's driver: this is ordinary DMA, not an MSI, so no strategy helps"
_GUEST_DRIVER = "fix the guest's driver: no strategy helps"
_LARGEST_OAS = "vmm-msi attach {guest} {device} --vsmmu oas=44, the size that every pSMMU has"

_HOST_STAGE1 = Cause(
    "the device is not in {guest}, so stage 1 is the host's own: its driver did not map the "
    "address",
    remedies=("fix the device's driver on the host: no strategy helps",),
)
_BARE_DOORBELL = Cause(
    "the host's kernel programmed the device with the doorbell's physical address, as it does for "
    "a device without a SW MSI window: /sys/kernel/iommu_groups/*/reserved_regions",
    "S{stage}: {page} -> {page}",
    remedies=("use a device of another host: nested translation requires a SW MSI window",),
    findings=related_findings.NO_WINDOW,
)
_UNKNOWN_GIOVA = Cause(
    "it looks like an MSI to a gIOVA: the device was programmed with an address that its stage 1 "
    "does not map, the gIOVA of another device or one that the guest has since unmapped",
    "S1 of the device: {page} -> gDB",
    strategies=True,
)
_UNMAPPED_IOVA = Cause(
    "the driver did not map the address, or unmapped it too early",
    "S1: {page} -> an IPA of the guest's choice",
    remedies=(_DMA,),
)

#: Stage 1 has no translation, by the kind of the IOVA.
_STAGE1: Mapping[AddressKind, Cause] = {
    AddressKind.SLOT: Cause(
        "the host's kernel programmed the device with an address of its SW MSI window, and the "
        "guest's stage 1 does not map the window 1:1: the guest has no RMR for it, or ignores the "
        "RMR",
        "S1: {page} -> {page}, of the window {window}",
        strategies=True,
        ignores_rmr=True,
        findings=related_findings.WINDOW,
    ),
    AddressKind.BEYOND_RMR: Cause(
        "the host's kernel gives each pITS of one iommufd file descriptor a page of the window, "
        "and this page is beyond the 1 MiB that the RMR covers",
        "S1: {page} -> {page}",
        remedies=(
            (
                "use fewer pITSes in one guest (at most 16 with 64K pages, 64 with 4K): assign "
                "devices of the same pITSes, or divide them among guests"
            ),
            "or use a host kernel with 4K pages",
        ),
        findings=related_findings.BEYOND,
    ),
    AddressKind.OTHER_GIOVA: Cause(
        "the device was programmed with the gIOVA of {owner}: a binding belongs to the nested "
        "IOMMU domain, and the kernel uses one whichever device registered it",
        "S1 of the device: {page} -> gDB",
        strategies=True,
    ),
    AddressKind.GIOVA: Cause(
        "the address is correct, but the guest's stage 1 no longer maps it: the guest freed the "
        "interrupt or the table, or did not finish setting it up",
        "S1: {page} -> {gdb}",
        remedies=(f"{_GUEST_DRIVER}; bind it again in the guest",),
    ),
    AddressKind.GDB: Cause(
        "the device was programmed with gDB itself, as if it had no stage 1; the guest's stage 1 "
        "maps a gIOVA to it",
        "S1: {page} -> {page}",
        strategies=True,
        ignores_rmr=True,
    ),
    AddressKind.HDB: _BARE_DOORBELL,
}

_TABLE_WALK = Cause(
    "the guest has a stage 1 table at an IPA that stage 2 does not map, so that none of the "
    "device's accesses are translated",
    "S2: {page} -> the guest's memory",
    remedies=("stage 2 has to map the guest's RAM: see QEMU's log for a failed mapping",),
)
_OTHER_STAGE2 = Cause(
    "stage 1 maps to an address of the SW MSI window, and this stage 2 does not map that page: the "
    "kernel mapped it in another stage 2, or unmapped it when the device was attached elsewhere",
    "S2: {page} -> {hdb}",
    remedies=("have the guest enable the interrupt again: bind its driver again",),
    strategies=True,
)
_UNKNOWN_IPA = Cause(
    "the guest's stage 1 maps to an IPA that is not backed: a BAR of another device (peer-to-peer "
    "DMA), or a wrong entry of the guest",
    "S2: {page} -> no known target",
    remedies=(_DMA,),
)

#: Stage 2 has no translation, by the kind of the IPA.
_STAGE2: Mapping[AddressKind, Cause] = {
    AddressKind.GDB: Cause(
        "the guest's stage 1 maps to its doorbell, and stage 2 does not map the doorbell: no "
        "program registered gDB with the host's kernel",
        "S2: {page} (gDB) -> {hdb}",
        strategies=True,
    ),
    AddressKind.SLOT: _OTHER_STAGE2,
    AddressKind.BEYOND_RMR: _OTHER_STAGE2,
    AddressKind.HDB: _BARE_DOORBELL,
    AddressKind.RAM: Cause(
        "it is RAM of the guest that stage 2 does not map: mapping it failed, or it was unplugged",
        "S2: {page} -> the guest's memory",
        remedies=("see QEMU's log: vmm-msi explain < /var/log/libvirt/qemu/{guest}.log",),
    ),
}

#: The other faults, by kind and stage.
_OTHER_FAULTS: Mapping[tuple[EventKind, int], Cause] = {
    (EventKind.F_ADDR_SIZE, 1): Cause(
        "the guest's stage 1 has an entry with an IPA larger than its vSMMU or the pSMMU can put "
        "out",
        remedies=(_LARGEST_OAS,),
    ),
    (EventKind.F_ADDR_SIZE, 2): Cause(
        "the IPA is larger than the input of stage 2: the vSMMU promises more bits than the pSMMU "
        "has",
        remedies=(_LARGEST_OAS,),
    ),
    (EventKind.F_PERMISSION, 1): Cause(
        "the guest mapped it read-only, and the device writes",
        "S1: {page}, with write permission",
        remedies=(_GUEST_DRIVER,),
    ),
    (EventKind.F_PERMISSION, 2): Cause(
        "it is mapped read-only in stage 2, as ROM and firmware images are",
        "S2: {page}, with write permission",
        remedies=(_DMA,),
    ),
}
_READ_ONLY_DOORBELL = Cause(
    "the doorbell is mapped in stage 2 without write permission, and an MSI is a write",
    "S2: {page} -> hDB, with write permission (IOMMU_IOAS_MAP_WRITEABLE)",
    strategies=True,
)
_ACCESS_FLAG = Cause(
    "the table has an entry whose access flag is clear, and the SMMU does not set the flag",
    remedies=("fix the guest's kernel: no strategy helps",),
)


def explain_event(
    logged: Logged, context: LogContext, strategies: StrategyRemedies | None
) -> Explanation:
    """Explain an event, as far as the context allows."""
    event = logged.event
    if event is None and logged.number in list(EventKind):
        return _announced(EventKind(logged.number))
    if event is None:
        return Explanation(
            id="smmu-event-unknown",
            program=Program.KERNEL,
            what=f"event {logged.number:#04x}, which the architecture does not define: it is "
            "specific to the SMMU's vendor",
            source=_SOURCE,
        )
    subjects = subjects_of(logged, context)
    device = context.host_device(subjects[0].address) if len(subjects) == 1 else None
    if not event.stage:
        return _configuration_error(event, subjects, device, context)
    iova = describe_iova(event.iova, device, context)
    ipa = None if event.ipa is None else describe_ipa(event.ipa, device, context)
    if ipa is not None and ipa.kind is AddressKind.GDB and iova.kind is AddressKind.UNKNOWN:
        text = "the gIOVA that the guest's stage 1 maps to its doorbell"
        iova = DescribedAddress(AddressKind.GIOVA, text, msi=True)
    cause = _filled(_cause(event, iova, ipa, device, context), event, iova, device, context)
    remedies = [Remedy(remedy) for remedy in cause.remedies]
    if cause.strategies and strategies is not None:
        address = subjects[0].address if len(subjects) == 1 else None
        remedies += strategies.remedies(address, ignores_rmr=cause.ignores_rmr)
    tables = "the host's tables" if event.stage == 2 else _stage1_tables(device, context)
    walk = ", read for a stage 1 table," if event.table_walk else ""
    access = f" ({logged.access})" if logged.access else ""
    return Explanation(
        id=f"smmu-{event.kind.name}",
        program=Program.KERNEL,
        what=f"event {event.kind.name} at stage {event.stage}: {tables} have "
        f"{_FAULTS[event.kind]}{walk}{access}",
        devices=subjects,
        stream=event.stream_id,
        stage=event.stage,
        iova=event.iova,
        iova_is=iova.text,
        ipa=event.ipa,
        ipa_is="" if ipa is None else ipa.text,
        missing=cause.missing,
        why=cause.why,
        remedies=tuple(remedies),
        findings=cause.findings,
        source=_SOURCE,
    )


def subjects_of(logged: Logged, context: LogContext) -> tuple[Subject, ...]:
    """Return the devices that may have caused an event."""
    if logged.client is not None:
        if context.in_guest:
            return (context.by_guest_address(logged.client),)
        return (context.subject(logged.client),)
    if logged.event is None:
        return ()
    return context.by_stream(logged.event.stream_id, logged.smmu)


def _announced(kind: EventKind) -> Explanation:
    """Explain an event of which the log has only the first line."""
    meaning = MEANINGS.get(kind)
    what = f"the tables have {_FAULTS[kind]}" if meaning is None else meaning.what
    return Explanation(
        id=f"smmu-{kind.name}",
        program=Program.KERNEL,
        what=f"event {kind.name}: {what}",
        why="device, address and stage are in the lines after it, which are missing here",
        remedies=(Remedy("include these lines, too: dmesg | vmm-msi explain"),),
        source=_SOURCE,
    )


def _configuration_error(
    event: SmmuEvent,
    subjects: tuple[Subject, ...],
    device: HostDevice | None,
    context: LogContext,
) -> Explanation:
    meaning = MEANINGS[event.kind]
    names = _names(device, context)
    return Explanation(
        id=f"smmu-{event.kind.name}",
        program=Program.KERNEL,
        what=f"event {event.kind.name}: {meaning.what}",
        devices=subjects,
        stream=event.stream_id,
        why=meaning.why,
        remedies=tuple(Remedy(remedy.format(**names)) for remedy in meaning.remedies),
        source=_SOURCE,
    )


def _cause(
    event: SmmuEvent,
    iova: DescribedAddress,
    ipa: DescribedAddress | None,
    device: HostDevice | None,
    context: LogContext,
) -> Cause:
    if event.kind is EventKind.F_ACCESS:
        return _ACCESS_FLAG
    if event.kind is EventKind.F_PERMISSION and event.stage == 2:
        doorbells = {AddressKind.GDB, AddressKind.SLOT, AddressKind.HDB}
        if (iova if ipa is None else ipa).kind in doorbells:
            return _READ_ONLY_DOORBELL
    other = _OTHER_FAULTS.get((event.kind, event.stage))
    if other is not None:
        return other
    if event.stage == 1:
        if not _is_assigned(device, context):
            return _HOST_STAGE1
        return _STAGE1.get(iova.kind, _UNKNOWN_GIOVA if iova.msi else _UNMAPPED_IOVA)
    if ipa is None:
        return Cause("stage 2 does not map the IPA, which the log does not have")
    return _TABLE_WALK if event.table_walk else _STAGE2.get(ipa.kind, _UNKNOWN_IPA)


def _filled(
    cause: Cause,
    event: SmmuEvent,
    iova: DescribedAddress,
    device: HostDevice | None,
    context: LogContext,
) -> Cause:
    """Return a cause with its placeholders filled in."""
    if event.stage == 1:
        page = str(event.iova.align_down(0x1000))
    elif event.ipa is None:
        page = "it"
    else:
        size = context.granule or 0x1000 if event.kind is EventKind.F_TRANSLATION else 0x1000
        page = str(event.ipa.align_down(size))
    its = context.its_of(device)
    values = {
        **_names(device, context),
        "page": page,
        "stage": str(event.stage),
        "owner": str(iova.owner),
        "window": f"{SW_MSI_WINDOW.base:#x}-{SW_MSI_WINDOW.last:#x}",
        "gdb": str(vitses(context)[0].gdb),
        "hdb": "hDB" if its is None else f"{its.doorbell} (hDB, ITS {its.id})",
    }
    return replace(
        cause,
        why=cause.why.format(**values),
        missing=cause.missing.format(**values),
        remedies=tuple(remedy.format(**values) for remedy in cause.remedies),
    )


def _names(device: HostDevice | None, context: LogContext) -> dict[str, str]:
    """Return the names of guest and device, for messages and commands."""
    return {
        "guest": context.guest_name if context.guest is not None else "GUEST",
        "device": str(device.address) if device is not None else "DEVICE",
    }


def _is_assigned(device: HostDevice | None, context: LogContext) -> bool:
    """Return whether a device is the guest's, or may be."""
    if device is None or context.guest is None:
        return True
    return context.guest_device(device.address) is not None


def _stage1_tables(device: HostDevice | None, context: LogContext) -> str:
    """Return whose stage 1 tables translate for a device."""
    if context.in_guest or (device is not None and context.guest is not None):
        assigned = _is_assigned(device, context)
        return "the guest's tables" if assigned else "the host's own tables"
    return "the tables (the guest's, if the device is assigned)"
