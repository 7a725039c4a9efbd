"""Rules about interrupt isolation and the parameters that disable it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import (
    UNSAFE_CONTAINER,
    UNSAFE_IOMMUFD,
    is_on,
    named,
    unsafe_parameter,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case

_NOIOMMU = "vfio.enable_unsafe_noiommu_mode"


def _parameter(name: str, value: str) -> Evidence:
    module, _, key = name.partition(".")
    return Evidence(f"/sys/module/{module}/parameters/{key}", value)


def unsafe_needed(case: Case) -> Iterator[Finding]:
    """Yield the devices that the kernel refuses because their MSIs are not isolated."""
    for address, device, _function in case.selected:
        its = None if device is None else case.host.its_by_id.get((*device.its_group, -1)[0])
        parameter = unsafe_parameter(case, address)
        if its is None or its.isolates_msis or is_on(case, parameter):
            continue
        value = case.kernel.parameters.get(parameter)
        is_iommufd = parameter == UNSAFE_IOMMUFD
        other = UNSAFE_CONTAINER if is_iommufd else UNSAFE_IOMMUFD
        cause = "is a GICv2m" if its.gicv2m else "has a pre-ITS"
        yield Finding(
            "unsafe-interrupts-needed",
            Severity.ERROR if case.devices_selected else Severity.WARNING,
            str(address),
            (
                Evidence(case.host.source, f"ITS {its.id} of {address} {cause}"),
                _parameter(parameter, "missing, which means N" if value is None else value),
            ),
            f"QEMU cannot {'bind' if is_iommufd else 'add'} {address} to "
            f"{'iommufd' if is_iommufd else 'a VFIO container'}: its MSIs are not isolated, and "
            "the kernel refuses it with EPERM.",
            "Use a device with an ITS of its own. Set "
            f"{parameter}=1 only if you trust the guest as much as the host; {other} has no effect "
            "on it.",
        )


def unsafe_on(case: Case) -> Iterator[Finding]:
    """Yield a finding if devices without isolated MSIs may be assigned."""
    on = [name for name in (UNSAFE_IOMMUFD, UNSAFE_CONTAINER) if is_on(case, name)]
    if not on:
        return
    if UNSAFE_IOMMUFD in on:
        consequence = (
            "A guest whose device's MSIs are not isolated can raise any interrupt of the host and "
            "of other guests, and thereby crash or compromise them."
        )
    else:
        consequence = (
            "A guest with a device assigned through a VFIO container can raise any interrupt of "
            "the host if MSIs are not isolated; through iommufd it still cannot."
        )
    yield Finding(
        "unsafe-interrupts-on",
        Severity.WARNING,
        "host",
        tuple(_parameter(name, case.kernel.parameters[name]) for name in on),
        consequence,
        f"Set {named(on)} to N unless an assigned device needs it; an ITS isolates MSIs without "
        "it.",
    )


def noiommu(case: Case) -> Iterator[Finding]:
    """Yield a finding if VFIO may assign devices without an IOMMU."""
    if is_on(case, _NOIOMMU):
        yield Finding(
            "noiommu-mode",
            Severity.WARNING,
            "host",
            (_parameter(_NOIOMMU, case.kernel.parameters[_NOIOMMU]),),
            "Any process that can open /dev/vfio/noiommu-* can make a device write to all memory "
            "of the host; guests cannot use the mode, because nothing translates their addresses.",
            f"Set {_NOIOMMU} to N, and enable the SMMU instead.",
        )
