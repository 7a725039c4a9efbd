"""Rules about reserved regions: the MSI window and 1:1 mappings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import (
    doorbell_pages,
    nested_devices,
    reserved_regions,
)
from vmm_msi.types import SW_MSI_WINDOW, ReservedKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.types import HostDevice

#: Doorbells that one iommufd can hold: Linux ``drivers/iommu/iommufd/iommufd_private.h``
#: struct iommufd_sw_msi_maps.
MAX_DOORBELLS = 64

_RMR = f"{SW_MSI_WINDOW.base:#x}-{SW_MSI_WINDOW.last:#x}"


def hw_msi(case: Case) -> Iterator[Finding]:
    """Yield the devices whose MSIs bypass the SMMU."""
    for selected in nested_devices(case):
        regions, place = reserved_regions(case, selected) or ((), "")
        hardware = [region for region in regions if region.kind is ReservedKind.HW_MSI]
        if hardware:
            yield Finding(
                "hw-msi-region",
                Severity.ERROR if case.devices_selected else Severity.WARNING,
                str(selected.address),
                tuple(Evidence(place, str(region)) for region in hardware),
                f"{selected.address} cannot be attached: its MSIs bypass the SMMU. vmm-msi "
                "refuses it, and iommufd does if it has a software window as well (EINVAL).",
                "Use a device behind another kind of SMMU; HiSilicon Hip06 and Hip07 have none.",
            )


def direct(case: Case) -> Iterator[Finding]:
    """Yield the devices for which firmware requires a 1:1 mapping.

    If the kernel lists a device's regions, the IORT is not consulted: Linux applies an RMR to a PCI
    device only if it preserves the firmware's PCI configuration (``drivers/acpi/arm64/iort.c``
    iort_rmr_has_dev).
    """
    for selected in case.selected:
        regions, place = reserved_regions(case, selected) or ((), "")
        evidence = [
            Evidence(place, str(region)) for region in regions if region.kind is ReservedKind.DIRECT
        ]
        listed = selected.function is not None and selected.function.reserved is not None
        if selected.device is not None and not listed:
            evidence += _memory(case, selected.device)
        if evidence:
            yield Finding(
                "direct-region",
                Severity.ERROR if case.devices_selected else Severity.WARNING,
                str(selected.address),
                tuple(evidence),
                f"{selected.address} cannot be assigned: firmware requires a permanent 1:1 "
                "mapping for it, which the kernel refuses to remove (EINVAL).",
                "Use another device, or ask the vendor for a firmware that omits this region or "
                "permits remapping.",
            )


def _memory(case: Case, device: HostDevice) -> list[Evidence]:
    """Return the RMRs of a device that do not permit remapping."""
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
    """Yield the devices whose MSI window differs from the one in QEMU's RMR."""
    if case.plugins is not None:
        return  # rules_strategy.rmr_fixed knows whether a strategy needs an RMR
    for selected in nested_devices(case):
        regions, place = reserved_regions(case, selected) or ((), "")
        window = next((r for r in regions if r.kind is ReservedKind.SW_MSI), None)
        if window is None or (window.base, window.size) == (SW_MSI_WINDOW.base, SW_MSI_WINDOW.size):
            continue
        yield Finding(
            "rmr-fixed",
            Severity.ERROR,
            str(selected.address),
            (Evidence(place, str(window)),),
            f"The kernel maps the doorbells of {selected.address} from {window.base:#x} on, but "
            f"QEMU's RMR covers {_RMR}: its MSIs fault in stage 1.",
            "Boot a kernel whose SMMU driver has the window at its usual address (MSI_IOVA_BASE).",
        )


def capacity(case: Case) -> Iterator[Finding]:
    """Yield a finding if the host has more doorbells than the MSI window has pages."""
    size = int(case.host.granule)
    slots = SW_MSI_WINDOW.size // size
    pages = doorbell_pages(case)
    most = min(slots, MAX_DOORBELLS)
    if len(pages) <= most:
        return
    if most < MAX_DOORBELLS:
        loss = f"the {most + 1}th doorbell used lies outside the RMR {_RMR} and faults in stage 1"
    else:
        loss = f"the {most + 1}th doorbell used is refused with ENOSPC"
    yield Finding(
        "msi-window-full",
        Severity.NOTE,
        "host",
        (
            Evidence(case.host.source, f"{len(pages)} doorbell pages, {case.host.granule} each"),
            Evidence(f"MSI window {_RMR}", f"{slots} pages"),
        ),
        f"A guest with all these devices loses MSIs: {loss}.",
        f"Give a guest devices of at most {most} ITSes"
        + (", or use a host kernel with 4K pages." if most < MAX_DOORBELLS else "."),
    )
