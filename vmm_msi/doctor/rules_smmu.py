"""Rules about physical SMMUs: presence, driver and nesting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import (
    by_smmu,
    has_no_devices,
    kernel_release,
    named,
    nested_devices,
    smmu_name,
    sysfs,
)
from vmm_msi.host.files import UnreadableError
from vmm_msi.host.pci.sysfs import IOMMUS, driven_smmus
from vmm_msi.types import Firmware

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case, SmmuHardware
    from vmm_msi.types import PciAddress

#: First release whose driver detects S2FWB on each SMMU.
DETECTS_S2FWB = (6, 15)

_ELSEWHERE = "Use devices behind an SMMU that can nest, or run their guest without a vSMMU"


def no_smmu(case: Case) -> Iterator[Finding]:
    """Yield the devices without an SMMU, or the host if no device of it has one."""
    remedy = "Use a device below a host bridge with an SMMU"
    if case.host.firmware is Firmware.DEVICE_TREE:
        remedy += ", or a device tree whose host bridges have iommu-map, if the board has an SMMU."
    else:
        remedy += ", or enable the SMMU in the firmware's setup if it is disabled there."
    if has_no_devices(case) and not any(route.smmu is not None for route in case.host.routes):
        yield Finding(
            "no-smmu",
            Severity.WARNING,
            "host",
            (Evidence(case.host.source, "no PCI device is behind an SMMU"),),
            "No device of this host can be assigned: VFIO refuses devices whose DMA is not "
            "translated.",
            remedy,
        )
    for address, device, _function in case.selected:
        if device is not None and device.smmu is None:
            yield Finding(
                "no-smmu",
                Severity.ERROR if case.devices_selected else Severity.WARNING,
                str(address),
                (Evidence(case.host.source, f"no SMMU for RequesterID {address.rid:#x}"),),
                f"{address} cannot be assigned: VFIO refuses devices whose DMA is not translated.",
                remedy,
            )


def no_iommu_group(case: Case) -> Iterator[Finding]:
    """Yield the devices without an IOMMU group whose SMMU has a driver."""
    if not case.host.lists_all_functions:
        return  # a listing that people posted, which may lack groups
    undriven = _undriven(case)
    for address, device, function in case.selected:
        if function is None or function.iommu_group is not None:
            continue
        if device is not None and (device.smmu is None or device.smmu in undriven):
            continue
        yield Finding(
            "no-iommu-group",
            Severity.ERROR if case.devices_selected else Severity.WARNING,
            str(address),
            (sysfs(address, "iommu_group", "missing"),),
            f"{address} cannot be assigned: vfio-pci rejects devices without an IOMMU group "
            "(EINVAL).",
            f"Search the kernel log for {address} and for arm-smmu lines: the SMMU driver refused "
            "the device, or the SMMU is disabled.",
        )


def _driven(case: Case) -> set[int] | None:
    """Return the addresses of the SMMUs that have a driver; None if unknown."""
    if case.tree is None:
        return None
    try:
        if not case.tree.exists(IOMMUS):
            return None
        return {smmu.base for smmu in driven_smmus(case.tree)}
    except UnreadableError:
        return None


def _undriven(case: Case) -> set[int]:
    """Return the ids of the SMMUs that firmware describes and that have no driver."""
    driven = _driven(case)
    if driven is None:
        return set()
    return {
        smmu.id for smmu in case.host.smmus if smmu.base is not None and smmu.base not in driven
    }


def not_driven(case: Case) -> Iterator[Finding]:
    """Yield the SMMUs that firmware describes and that have no driver."""
    undriven = _undriven(case)
    for smmu, devices in by_smmu(case, case.selected):
        if smmu.id in undriven:
            yield Finding(
                "smmu-not-driven",
                Severity.ERROR,
                smmu_name(smmu),
                (
                    Evidence(case.host.source, f"an SMMU at {smmu.base}"),
                    Evidence(IOMMUS, f"no SMMU at {smmu.base}"),
                ),
                f"{named(devices)} cannot be assigned: DMA behind this SMMU is not translated, and "
                "devices have no IOMMU group.",
                "Search the kernel log for arm-smmu lines, which show why the driver failed, or "
                "boot a kernel with this driver.",
            )


def version_2(case: Case) -> Iterator[Finding]:
    """Yield the SMMUs of an older architecture."""
    for smmu, devices in by_smmu(case, nested_devices(case)):
        if smmu.version < 3:
            yield Finding(
                "smmu-version-2",
                Severity.ERROR,
                smmu_name(smmu),
                (Evidence(case.host.source, f"{smmu_name(smmu)} is an SMMUv1 or SMMUv2"),),
                f"{named(devices)} cannot be behind a vSMMU: Linux's driver for this SMMU has no "
                "vIOMMU (IOMMU_VIOMMU_ALLOC returns EOPNOTSUPP).",
                f"{_ELSEWHERE}; they can be assigned without one.",
            )


def _cannot_nest(hardware: SmmuHardware | None) -> str:
    """Return why an SMMU cannot nest, by its driver; empty if it can or that is unknown."""
    if hardware is None:
        return ""
    if hardware.stage1 is False:
        return "has no stage 1"
    if hardware.stage2 is False:
        return "has no stage 2"
    return "has both stages, but its driver does not nest them" if hardware.nested is False else ""


def no_stage(case: Case) -> Iterator[Finding]:
    """Yield the SMMUs that lack one of the stages."""
    for smmu, devices in by_smmu(case, nested_devices(case)):
        hardware = case.kernel.smmus.get(smmu.id)
        if hardware is None:
            continue
        if hardware.stage1 is False:
            yield Finding(
                "smmu-no-stage1",
                Severity.ERROR,
                smmu_name(smmu),
                hardware.evidence,
                f"{named(devices)} cannot be behind a vSMMU: the kernel refuses the nest parent "
                "with EOPNOTSUPP, because the SMMU cannot run a guest's stage 1.",
                f"{_ELSEWHERE}.",
            )
        if hardware.stage2 is False:
            yield Finding(
                "smmu-no-stage2",
                Severity.ERROR,
                smmu_name(smmu),
                hardware.evidence,
                f"{named(devices)} cannot be behind a vSMMU: the kernel refuses the nest parent "
                "with EOPNOTSUPP.",
                f"{_ELSEWHERE}.",
            )


def not_nested(case: Case) -> Iterator[Finding]:
    """Yield the SMMUs that cannot nest although neither stage is known to be missing."""
    for smmu, devices in by_smmu(case, nested_devices(case)):
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
            f"{named(devices)} cannot be behind a vSMMU: the kernel refuses the nest parent "
            "with EOPNOTSUPP, as it does on an MMU-600 before r2p0 and an MMU-700 before r1p1.",
            f"{_ELSEWHERE}.",
        )


def _without_canwbs(case: Case, devices: list[PciAddress]) -> list[PciAddress]:
    """Return the devices whose PCI host is not described as having CANWBS."""
    has = {segment.number for segment in case.host.segments if segment.canwbs}
    return [device for device in devices if device.segment not in has]


def no_s2fwb(case: Case) -> Iterator[Finding]:
    """Yield the SMMUs behind which a guest could bypass the caches."""
    canwbs = {segment.number: segment.canwbs for segment in case.host.segments}
    release = kernel_release(case.kernel.release)
    remedy = f"{_ELSEWHERE}; no kernel setting changes this."
    if release is not None and release < DETECTS_S2FWB:
        remedy = "Boot Linux 6.15 or newer, which detects S2FWB, and run vmm-msi doctor again."
    for smmu, devices in by_smmu(case, nested_devices(case)):
        hardware = case.kernel.smmus.get(smmu.id)
        if smmu.version < 3 or hardware is None or hardware.s2fwb is not False:
            continue
        unprotected = _without_canwbs(case, devices)
        if _cannot_nest(hardware) or not unprotected:
            continue
        evidence = [
            Evidence(case.host.source, f"segment {number}: no CANWBS")
            for number in sorted({device.segment for device in unprotected})
            if canwbs.get(number) is False
        ]
        yield Finding(
            "smmu-no-s2fwb",
            Severity.ERROR,
            smmu_name(smmu),
            (*hardware.evidence, *evidence),
            f"{named(unprotected)} cannot be behind a vSMMU: the kernel rejects IOMMU_VIOMMU_ALLOC "
            "with EOPNOTSUPP, because neither S2FWB nor CANWBS stops a guest from bypassing the "
            "caches.",
            remedy,
        )


def not_coherent(case: Case) -> Iterator[Finding]:
    """Yield the SMMUs that firmware describes as not coherent."""
    for smmu, devices in by_smmu(case, case.selected):
        hardware = case.kernel.smmus.get(smmu.id)
        if hardware is not None and hardware.coherent is False:
            yield Finding(
                "smmu-not-coherent",
                Severity.ERROR,
                smmu_name(smmu),
                hardware.evidence,
                f"{named(devices)} cannot be assigned: iommufd and VFIO refuse a device whose "
                "accesses are not coherent (EINVAL).",
                "Use devices behind a coherent SMMU; if this one is coherent, the firmware must "
                "say so (dma-coherent in a device tree, COHACC in the IORT).",
            )


def unknown(case: Case) -> Iterator[Finding]:
    """Yield a finding about the SMMUs whose nesting support is unknown."""
    if case.tree is None:
        return
    undriven = _undriven(case)
    unknown_smmus = []
    for smmu, devices in by_smmu(case, nested_devices(case)):
        hardware = case.kernel.smmus.get(smmu.id)
        if smmu.version < 3 or smmu.id in undriven or _cannot_nest(hardware):
            continue
        if hardware is None or (hardware.s2fwb is None and _without_canwbs(case, devices)):
            unknown_smmus.append(smmu)
    if unknown_smmus:
        names = named(smmu_name(smmu) for smmu in unknown_smmus)
        yield Finding(
            "smmu-unknown",
            Severity.UNKNOWN,
            names,
            (Evidence("dmesg", f"no line with the features of {names}"),),
            f"Whether {names} can nest and {'have' if len(unknown_smmus) > 1 else 'has'} S2FWB is "
            "unknown.",
            "Run as root soon after booting, while the kernel log still has the boot messages, or "
            "with a capture that includes them.",
        )


def passthrough(case: Case) -> Iterator[Finding]:
    """Yield a finding if the host's own DMA is not translated."""
    arguments = (case.kernel.cmdline or "").split()
    settings = [word for word in arguments if word.startswith("iommu.passthrough=")]
    options = case.kernel.options or {}
    if settings:
        on = settings[-1].partition("=")[2].lower() in {"1", "y", "yes", "t", "true", "on"}
        evidence = Evidence("/proc/cmdline", settings[-1])
    else:
        on = case.kernel.cmdline is not None and options.get("IOMMU_DEFAULT_PASSTHROUGH") == "y"
        evidence = Evidence(case.kernel.options_from, "CONFIG_IOMMU_DEFAULT_PASSTHROUGH=y")
    if on:
        yield Finding(
            "iommu-passthrough",
            Severity.NOTE,
            "host",
            (evidence,),
            "The host's own drivers use untranslated addresses; assigned devices still get their "
            "own translation.",
            "No action needed for guests; to protect the host from devices that are not assigned, "
            "boot with iommu.passthrough=0.",
        )
