"""Rules about physical SMMUs: whether there is one, whether it is driven, whether it can nest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import by_smmu, kernel_release, meant, named, smmu_name, sysfs
from vmm_msi.host.files import UnreadableError
from vmm_msi.host.pci.sysfs import IOMMUS, driven_smmus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case, SmmuHardware
    from vmm_msi.types import PciAddress

#: The first release whose driver looks for S2FWB on each SMMU.
LOOKS_FOR_S2FWB = (6, 15)

_ELSEWHERE = "Use devices behind an SMMU that can nest, or run their guest without a vSMMU"


def no_smmu(case: Case) -> Iterator[Finding]:
    """Yield the devices whose DMA passes through no SMMU."""
    for address, device, _function in meant(case):
        if device is not None and device.smmu is None:
            yield Finding(
                "no-smmu",
                Severity.ERROR if case.devices_selected else Severity.WARNING,
                str(address),
                (Evidence(case.host.source, f"no SMMU for RequesterID {address.rid:#x}"),),
                f"{address} cannot be assigned: VFIO gives away no device whose DMA nothing "
                "translates.",
                "Use a device below a host bridge with an SMMU, or switch the SMMU on in the "
                "firmware's setup where it is off.",
            )


def no_iommu_group(case: Case) -> Iterator[Finding]:
    """Yield the devices that the kernel has in no IOMMU group, with an SMMU that it drives."""
    undriven = _undriven(case)
    for address, device, function in meant(case):
        if function is None or function.iommu_group is not None:
            continue
        if device is not None and (device.smmu is None or device.smmu in undriven):
            continue
        yield Finding(
            "no-iommu-group",
            Severity.ERROR if case.devices_selected else Severity.WARNING,
            str(address),
            (sysfs(address, "iommu_group", "is not there"),),
            f"{address} cannot be assigned: vfio-pci does not take a device without an IOMMU "
            "group (EINVAL).",
            f"Look in the kernel's log for {address} and for arm-smmu lines: the SMMU did not "
            "take it, or was switched off.",
        )


def _driven(case: Case) -> set[int] | None:
    """Return the addresses of the SMMUs that the kernel drives; None where that is not known."""
    if case.tree is None:
        return None
    try:
        if not case.tree.exists(IOMMUS):
            return None
        return {smmu.base for smmu in driven_smmus(case.tree)}
    except UnreadableError:
        return None


def _undriven(case: Case) -> set[int]:
    """Return the ids of the SMMUs that firmware tells of and the kernel does not drive."""
    driven = _driven(case)
    if driven is None:
        return set()
    return {
        smmu.id for smmu in case.host.smmus if smmu.base is not None and smmu.base not in driven
    }


def not_driven(case: Case) -> Iterator[Finding]:
    """Yield the SMMUs that firmware tells of and the kernel does not drive."""
    undriven = _undriven(case)
    for smmu, devices in by_smmu(case):
        if smmu.id in undriven:
            yield Finding(
                "smmu-not-driven",
                Severity.ERROR,
                smmu_name(smmu),
                (
                    Evidence(case.host.source, f"an SMMU at {smmu.base}"),
                    Evidence(IOMMUS, f"has none at {smmu.base}"),
                ),
                f"{named(devices)} cannot be assigned: their DMA is not translated, and they are "
                "in no IOMMU group.",
                "Look for arm-smmu lines in the kernel's log, which say why it gave up, or boot a "
                "kernel with its driver.",
            )


def version_2(case: Case) -> Iterator[Finding]:
    """Yield the SMMUs of an older architecture."""
    for smmu, devices in by_smmu(case):
        if smmu.version < 3:
            yield Finding(
                "smmu-version-2",
                Severity.ERROR,
                smmu_name(smmu),
                (Evidence(case.host.source, f"{smmu_name(smmu)} is an SMMUv1 or SMMUv2"),),
                f"{named(devices)} cannot be behind a vSMMU: Linux's driver of this SMMU has no "
                "vIOMMU (IOMMU_VIOMMU_ALLOC gives EOPNOTSUPP).",
                f"{_ELSEWHERE}; without one they can be assigned.",
            )


def _cannot_nest(hardware: SmmuHardware | None) -> str:
    """Return why an SMMU cannot nest, as its driver has it; empty where it can or nobody knows."""
    if hardware is None:
        return ""
    if hardware.stage1 is False:
        return "has no stage 1"
    if hardware.stage2 is False:
        return "has no stage 2"
    return "has both stages, which its driver does not nest" if hardware.nested is False else ""


def no_stage(case: Case) -> Iterator[Finding]:
    """Yield the SMMUs that lack one of the stages."""
    for smmu, devices in by_smmu(case):
        hardware = case.kernel.smmus.get(smmu.id)
        if hardware is None:
            continue
        if hardware.stage1 is False:
            yield Finding(
                "smmu-no-stage1",
                Severity.ERROR,
                smmu_name(smmu),
                hardware.evidence,
                f"{named(devices)} cannot be behind a vSMMU: the kernel refuses the parent stage 2 "
                "with EOPNOTSUPP, since a guest's stage 1 would have no place.",
                f"{_ELSEWHERE}.",
            )
        if hardware.stage2 is False:
            yield Finding(
                "smmu-no-stage2",
                Severity.ERROR,
                smmu_name(smmu),
                hardware.evidence,
                f"{named(devices)} cannot be behind a vSMMU: the kernel refuses the parent stage 2 "
                "with EOPNOTSUPP.",
                f"{_ELSEWHERE}.",
            )


def not_nested(case: Case) -> Iterator[Finding]:
    """Yield the SMMUs whose stages are not nested though nothing says that they lack one."""
    for smmu, devices in by_smmu(case):
        hardware = case.kernel.smmus.get(smmu.id)
        if smmu.version < 3 or (
            hardware is not None and False in (hardware.stage1, hardware.stage2)
        ):
            continue
        evidence: tuple[Evidence, ...]
        if hardware is not None and hardware.nested is False:
            evidence = hardware.evidence
        elif hardware is None and not smmu.nested:
            evidence = (Evidence(case.host.source, f"{smmu_name(smmu)} cannot nest"),)
        else:
            continue
        yield Finding(
            "smmu-not-nested",
            Severity.ERROR,
            smmu_name(smmu),
            evidence,
            f"{named(devices)} cannot be behind a vSMMU: the kernel refuses the parent stage 2 "
            "with EOPNOTSUPP, as it does on an MMU-600 before r2p0 and an MMU-700 before r1p1.",
            f"{_ELSEWHERE}.",
        )


def _without_canwbs(case: Case, devices: list[PciAddress]) -> list[PciAddress]:
    """Return the devices whose PCI host is not said to have CANWBS."""
    has = {segment.number for segment in case.host.segments if segment.canwbs}
    return [device for device in devices if device.segment not in has]


def no_s2fwb(case: Case) -> Iterator[Finding]:
    """Yield the SMMUs behind which a guest could make accesses that miss the caches."""
    told = {segment.number: segment.canwbs for segment in case.host.segments}
    release = kernel_release(case.kernel.release)
    remedy = f"{_ELSEWHERE}; no setting of the kernel changes it."
    if release is not None and release < LOOKS_FOR_S2FWB:
        remedy = "Boot Linux 6.15 or newer, which looks for S2FWB, and run vmm-msi doctor again."
    for smmu, devices in by_smmu(case):
        hardware = case.kernel.smmus.get(smmu.id)
        if smmu.version < 3 or hardware is None or hardware.s2fwb is not False:
            continue
        poor = _without_canwbs(case, devices)
        if _cannot_nest(hardware) or not poor:
            continue
        evidence = [
            Evidence(case.host.source, f"segment {number}: no CANWBS")
            for number in sorted({device.segment for device in poor})
            if told.get(number) is False
        ]
        yield Finding(
            "smmu-no-s2fwb",
            Severity.ERROR,
            smmu_name(smmu),
            (*hardware.evidence, *evidence),
            f"{named(poor)} cannot be behind a vSMMU: the kernel answers IOMMU_VIOMMU_ALLOC with "
            "EOPNOTSUPP, as neither S2FWB nor CANWBS keeps a guest from bypassing the caches.",
            remedy,
        )


def not_coherent(case: Case) -> Iterator[Finding]:
    """Yield the SMMUs that firmware calls not coherent."""
    for smmu, devices in by_smmu(case):
        hardware = case.kernel.smmus.get(smmu.id)
        if hardware is not None and hardware.coherent is False:
            yield Finding(
                "smmu-not-coherent",
                Severity.ERROR,
                smmu_name(smmu),
                hardware.evidence,
                f"{named(devices)} cannot be assigned: iommufd and VFIO refuse a device whose "
                "accesses are not coherent (EINVAL).",
                "Use devices behind a coherent SMMU; where this one is, firmware has to say so "
                "(dma-coherent in a device tree, COHACC in the IORT).",
            )


def unknown(case: Case) -> Iterator[Finding]:
    """Yield the SMMUs of which it is not known whether they can nest."""
    if case.tree is None:
        return
    undriven = _undriven(case)
    silent = []
    for smmu, devices in by_smmu(case):
        hardware = case.kernel.smmus.get(smmu.id)
        if smmu.version < 3 or smmu.id in undriven or _cannot_nest(hardware):
            continue
        if hardware is None or (hardware.s2fwb is None and _without_canwbs(case, devices)):
            silent.append(smmu)
    if silent:
        names = named(smmu_name(smmu) for smmu in silent)
        yield Finding(
            "smmu-unknown",
            Severity.UNKNOWN,
            names,
            (Evidence("dmesg", f"no line with the features of {names}"),),
            f"Whether {names} can nest, and has S2FWB, is not known.",
            "Run as root soon after a boot, while the kernel's log still begins with it, or with "
            "the log of the boot in a capture.",
        )


def passthrough(case: Case) -> Iterator[Finding]:
    """Yield that the host's own DMA bypasses stage 1."""
    words = (case.kernel.cmdline or "").split()
    given = [word for word in words if word.startswith("iommu.passthrough=")]
    options = case.kernel.options or {}
    if given:
        on = given[-1].partition("=")[2].lower() in {"1", "y", "yes", "t", "true", "on"}
        evidence = Evidence("/proc/cmdline", given[-1])
    else:
        on = case.kernel.cmdline is not None and options.get("IOMMU_DEFAULT_PASSTHROUGH") == "y"
        evidence = Evidence(case.kernel.options_from, "CONFIG_IOMMU_DEFAULT_PASSTHROUGH=y")
    if on:
        yield Finding(
            "iommu-passthrough",
            Severity.NOTE,
            "host",
            (evidence,),
            "The host's own drivers use addresses untranslated; a device that is assigned gets "
            "its own translation all the same.",
            "Nothing has to be done for guests; for protection from devices that are not "
            "assigned, boot with iommu.passthrough=0.",
        )
