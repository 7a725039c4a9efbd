"""Rules about reserved regions: the window of doorbells and what must be mapped 1:1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import doorbell_pages, meant, reserved
from vmm_msi.types import SW_MSI_WINDOW, ReservedKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.types import HostDevice

#: Doorbells that one iommufd has a place for: Linux ``drivers/iommu/iommufd/iommufd_private.h``
#: struct iommufd_sw_msi_maps.
MAX_DOORBELLS = 64

_RMR = f"{SW_MSI_WINDOW.base:#x}-{SW_MSI_WINDOW.last:#x}"


def hw_msi(case: Case) -> Iterator[Finding]:
    """Yield the devices whose MSIs bypass the SMMU."""
    for each in meant(case):
        regions, place = reserved(case, each) or ((), "")
        hardware = [region for region in regions if region.kind is ReservedKind.HW_MSI]
        if hardware:
            yield Finding(
                "hw-msi-region",
                Severity.ERROR if case.devices_selected else Severity.WARNING,
                str(each.address),
                tuple(Evidence(place, str(region)) for region in hardware),
                f"{each.address} cannot be attached: its MSIs bypass the SMMU, which vmm-msi "
                "refuses, and iommufd, where there is a software window beside it, with EINVAL.",
                "Use a device behind another kind of SMMU; on HiSilicon Hip06 and Hip07 there is "
                "none.",
            )


def direct(case: Case) -> Iterator[Finding]:
    """Yield the devices that firmware wants to have memory mapped 1:1 for.

    Where the kernel lists their regions, that is what counts: it takes an RMR for a PCI device only
    where it keeps the firmware's PCI configuration (Linux ``drivers/acpi/arm64/iort.c``
    iort_rmr_has_dev).
    """
    for each in meant(case):
        regions, place = reserved(case, each) or ((), "")
        evidence = [
            Evidence(place, str(region)) for region in regions if region.kind is ReservedKind.DIRECT
        ]
        listed = each.function is not None and each.function.reserved is not None
        if each.device is not None and not listed:
            evidence += _memory(case, each.device)
        if evidence:
            yield Finding(
                "direct-region",
                Severity.ERROR if case.devices_selected else Severity.WARNING,
                str(each.address),
                tuple(evidence),
                f"{each.address} cannot be assigned: firmware wants memory mapped 1:1 for it at "
                "all times, and the kernel refuses to take that away (EINVAL).",
                "Use another device, or ask the vendor for a firmware without this RMR, or one "
                "that permits remapping.",
            )


def _memory(case: Case, device: HostDevice) -> list[Evidence]:
    """Return the RMRs of a device that must stay."""
    return [
        Evidence(
            case.host.source,
            f"RMR {memory.base:#x}-{memory.base + memory.size - 1:#x} for StreamID "
            f"{device.stream_id}",
        )
        for memory in case.host.reserved_memory
        if memory.smmu == device.smmu
        and not memory.relaxable
        and memory.first_stream <= device.stream_id <= memory.last_stream
    ]


def window_moved(case: Case) -> Iterator[Finding]:
    """Yield the devices whose doorbells the kernel maps elsewhere than QEMU tells the guest."""
    if case.plugins is not None:
        return  # rules_strategy.rmr_fixed knows whether a strategy needs an RMR
    for each in meant(case):
        regions, place = reserved(case, each) or ((), "")
        window = next((r for r in regions if r.kind is ReservedKind.SW_MSI), None)
        if window is None or (window.base, window.size) == (SW_MSI_WINDOW.base, SW_MSI_WINDOW.size):
            continue
        yield Finding(
            "rmr-fixed",
            Severity.ERROR,
            str(each.address),
            (Evidence(place, str(window)),),
            f"The kernel maps the doorbells of {each.address} from {window.base:#x} on, and QEMU "
            f"tells the guest to map {_RMR} 1:1: its MSIs fault in stage 1.",
            "Boot a kernel whose SMMU driver has the window at its usual place (MSI_IOVA_BASE).",
        )


def capacity(case: Case) -> Iterator[Finding]:
    """Yield that the host has more doorbells than the window of one guest has pages."""
    size = int(case.host.granule)
    slots = SW_MSI_WINDOW.size // size
    pages = doorbell_pages(case)
    most = min(slots, MAX_DOORBELLS)
    if len(pages) <= most:
        return
    if most < MAX_DOORBELLS:
        happens = f"that of the {most + 1}th lies behind the RMR {_RMR} and faults in stage 1"
    else:
        happens = f"the {most + 1}th is refused with EOVERFLOW"
    yield Finding(
        "msi-window-full",
        Severity.NOTE,
        "host",
        (
            Evidence(case.host.source, f"{len(pages)} doorbell pages, {case.host.granule} each"),
            Evidence(f"MSI window {_RMR}", f"{slots} pages"),
        ),
        f"One guest with all these devices loses MSIs: of the doorbells, in the order in which "
        f"they are used, {happens}.",
        f"Give a guest devices of {most} ITSes at most"
        + (", or use a host kernel with 4K pages." if most < MAX_DOORBELLS else "."),
    )
