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
from vmm_msi.explain.cause import Cause
from vmm_msi.explain.configuration import (
    HOST_ATS,
    HOST_ATS_LEFT_ON,
    HOST_ATS_PROMISED,
    MEANINGS,
    PER_BUS,
    Case,
)
from vmm_msi.explain.explanation import Explanation, Program, Reading, Remedy, Subject
from vmm_msi.explain.kernel_bindings import cause_in_kernel
from vmm_msi.explain.readings import cause_for
from vmm_msi.explain.users import User, users_of
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.types import SW_MSI_WINDOW, Firmware

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

_BARE_DOORBELL = Cause(
    "the host's kernel programmed the device with the doorbell's physical address, as it does for "
    "a device without a SW MSI window: /sys/kernel/iommu_groups/*/reserved_regions",
    "S{stage}: {page} -> {page}",
    on_host=("use a device of another host: nested translation requires a SW MSI window",),
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
        ),
        on_host=("or use a host kernel with 4K pages",),
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


#: Events of a StreamID that the guest's kernel has not set up.
_UNKNOWN_STREAM = {EventKind.C_BAD_STREAMID, EventKind.C_BAD_STE}


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
    users = (User.NESTED,) if _shows_both_stages(event) else users_of(subjects, context)
    if not event.stage:
        return _configuration_error(event, subjects, users, context)
    iova = describe_iova(event.iova, device, context)
    ipa = None if event.ipa is None else describe_ipa(event.ipa, device, context)
    if ipa is not None and ipa.kind is AddressKind.GDB and iova.kind is AddressKind.UNKNOWN:
        text = "the gIOVA that the guest's stage 1 maps to its doorbell"
        iova = DescribedAddress(AddressKind.GIOVA, text, msi=True)

    def cause_of(user: User) -> Cause:
        # An emulated vSMMU reports the other faults for the same reasons.
        guests = user is User.EMULATED and event.kind is not EventKind.F_TRANSLATION
        nested = user is User.NESTED or guests
        if nested:
            address = subjects[0].address if len(subjects) == 1 else None
            in_kernel = cause_in_kernel(event, iova, ipa, address, context)
            cause = in_kernel or _cause(event, iova, ipa)
        else:
            cause = cause_for(user, event, iova)
        return _filled(cause, event, iova, device, context)

    cause = cause_of(users[0])
    remedies = [Remedy(remedy) for remedy in cause.remedies]
    if not context.in_guest:
        remedies += [Remedy(remedy) for remedy in cause.on_host]
    if cause.strategies and strategies is not None:
        address = subjects[0].address if len(subjects) == 1 else None
        remedies += strategies.remedies(address, ignores_rmr=cause.ignores_rmr)
    others = () if event.stage == 2 and users[0] is User.NESTED else users[1:]
    tables = "the host's tables" if event.stage == 2 else _stage1_tables(users, context)
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
        why=_not_in_guest(subjects, users, context) + cause.why,
        remedies=tuple(remedies),
        findings=cause.findings,
        otherwise=tuple(
            _reading(user, other) for user in others if (other := cause_of(user)) != cause
        ),
        source=_SOURCE,
    )


def _shows_both_stages(event: SmmuEvent) -> bool:
    """Return whether stage 1 translated the address, or was read to do it, before stage 2."""
    moved = event.ipa is not None and event.ipa >> 12 != event.iova >> 12
    return event.stage == 2 and (moved or event.table_walk)


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


def _not_in_guest(
    subjects: tuple[Subject, ...], users: tuple[User, ...], context: LogContext
) -> str:
    """Return the beginning of a sentence if a device is not the guest's, else nothing."""
    assigned = any(context.guest_device(subject.address) for subject in subjects)
    if users[0] is not User.HOST or context.guest is None or assigned:
        return ""
    return f"the device is not in {context.guest_name}: "


def _reading(user: User, cause: Cause) -> Reading:
    remedies = (*cause.remedies, *cause.on_host)
    if cause.strategies:
        remedies += ("name the guest with --domain, to see the strategies that fix it",)
    return Reading(user, cause.why, remedies)


def _configuration_error(
    event: SmmuEvent,
    subjects: tuple[Subject, ...],
    users: tuple[User, ...],
    context: LogContext,
) -> Explanation:
    meaning = MEANINGS[event.kind]
    device = context.host_device(subjects[0].address) if len(subjects) == 1 else None
    names = _names(device, context)
    cases: dict[Case, list[User]] = {}
    for user in users:
        cases.setdefault(_case_of(event.kind, user, subjects, context), []).append(user)
    case, *others = cases
    return Explanation(
        id=f"smmu-{event.kind.name}",
        program=Program.KERNEL,
        what=f"event {event.kind.name}: {meaning.what}",
        devices=subjects,
        stream=event.stream_id,
        why=case.why,
        remedies=tuple(Remedy(remedy.format(**names)) for remedy in case.remedies),
        otherwise=tuple(
            Reading(
                ", or ".join(cases[other]),
                other.why,
                tuple(remedy.format(**names) for remedy in other.remedies),
            )
            for other in others
        ),
        source=_SOURCE,
    )


def _case_of(
    kind: EventKind, user: User, subjects: tuple[Subject, ...], context: LogContext
) -> Case:
    """Return how an event without an address comes about for a user."""
    meaning = MEANINGS[kind]
    if context.in_guest:
        if kind in _UNKNOWN_STREAM and len(subjects) == 1:
            return _bus_without_vsmmu(subjects[0], context) or meaning.in_guest or meaning.nested
        return meaning.in_guest or meaning.nested
    case = meaning.nested if user is User.NESTED else meaning.host or meaning.nested
    return _host_ats(subjects, context) if case is HOST_ATS else case


def _host_ats(subjects: tuple[Subject, ...], context: LogContext) -> Case:
    """Return how a device of the host uses ATS in vain, by what the root complex promises."""
    address = subjects[0].address if len(subjects) == 1 else None
    if context.host is None or address is None:
        return HOST_ATS
    promised = {segment.number: segment.ats for segment in context.host.segments}
    ats = promised.get(address.segment)
    if ats is None:
        return HOST_ATS
    case = HOST_ATS_PROMISED if ats else HOST_ATS_LEFT_ON
    if context.host.firmware is Firmware.DEVICE_TREE:
        promise = f"ats-supported in the device tree: {'yes' if ats else 'no'}"
    else:
        promise = f"ATS attribute in the IORT: {int(ats)}"
    return replace(case, why=case.why.format(promise=promise))


def _bus_without_vsmmu(subject: Subject, context: LogContext) -> Case | None:
    """Return the cause of a StreamID that the vSMMU of another bus does not know.

    :return: None if the definition does not show such a bus.
    """
    placement = context.placement
    if placement is None or subject.guest_address is None:
        return None
    vsmmus = [placement.bus_of(vsmmu) for vsmmu in placement.vsmmus]
    bus = context.expander_bus(subject.guest_address.bus)
    if bus is None or str(bus.index) in vsmmus:
        return None
    accel = "" if subject.address is None else " accel='on'"
    other = "the machine" if None in vsmmus else "pcie.0" if "0" in vsmmus else "another bus"
    return Case(
        f"{subject.guest_address} is behind the expander bus with busNr {bus.bus_nr} (controller "
        f"{bus.index}), which has no vSMMU, while {other} has one: QEMU translates for the bus "
        "with that vSMMU, and the guest's IORT does not say so",
        (
            (
                f"give controller {bus.index} a vSMMU: <iommu model='smmuv3'> with "
                f"pciBus='{bus.index}'{accel}"
            ),
            PER_BUS,
        ),
    )


def _cause(
    event: SmmuEvent,
    iova: DescribedAddress,
    ipa: DescribedAddress | None,
) -> Cause:
    """Return the cause of a fault of a device behind an accelerated vSMMU."""
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
        "iova_page": str(event.iova.align_down(0x1000)),
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


def _stage1_tables(users: tuple[User, ...], context: LogContext) -> str:
    """Return whose stage 1 tables translate for a device."""
    if users[0] in {User.HOST, User.PLAIN}:
        return "the host's own tables"
    if len(users) == 1 or context.in_guest:
        return "the guest's tables"
    return "the tables (the guest's, if it has the device behind a vSMMU)"
