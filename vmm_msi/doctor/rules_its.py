"""Rules about physical ITSes and the devices that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case


def no_its(case: Case) -> Iterator[Finding]:
    """Yield the devices whose MSIs go to no ITS."""
    for address in case.devices:
        device = case.host.device_by_address.get(address)
        if device is None or device.its_group:
            continue
        yield Finding(
            "no-its",
            Severity.ERROR,
            str(address),
            (Evidence(case.host.source, f"no ITS group for RequesterID {address.rid:#x}"),),
            f"{address} cannot be attached: no strategy has a physical ITS to lead its MSIs to.",
            "Use a device below a host bridge with an ITS, or mend the firmware tables.",
        )
