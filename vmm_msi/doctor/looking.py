"""What rules ask of a case in common: the devices that are meant, and words for several of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.doctor.finding import Evidence

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.model import HostDevice, PciAddress, PciFunction, ReservedRegion, Smmu

#: Devices that a sentence names; more are counted.
MAX_NAMED = 4


class Meant(NamedTuple):
    """A device that is looked at: the way to its SMMU and ITS, and what the system says of it."""

    address: PciAddress
    device: HostDevice | None
    function: PciFunction | None

    @property
    def group(self) -> int | None:
        """Its IOMMU group, where the system tells."""
        return None if self.function is None else self.function.iommu_group


def meant(case: Case) -> Iterator[Meant]:
    """Yield the devices that are looked at."""
    devices, functions = case.host.device_by_address, case.host.function_by_address
    for address in case.devices:
        yield Meant(address, devices.get(address), functions.get(address))


def by_smmu(case: Case) -> Iterator[tuple[Smmu, list[PciAddress]]]:
    """Yield the SMMUs that devices that are looked at are behind, with these."""
    found: dict[int, list[PciAddress]] = {}
    for each in meant(case):
        if each.device is not None and each.device.smmu is not None:
            found.setdefault(each.device.smmu, []).append(each.address)
    for number in sorted(found):
        smmu = case.host.smmu_by_id.get(number)
        if smmu is not None:
            yield smmu, found[number]


def named(things: Iterable[object]) -> str:
    """Return a list in words: the first of them, and how many more there are."""
    words = [str(thing) for thing in things]
    shown, more = words[:MAX_NAMED], len(words) - MAX_NAMED
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    if len(shown) > 1:
        return f"{', '.join(shown[:-1])} and {shown[-1]}"
    return "".join(shown)


def smmu_name(smmu: Smmu) -> str:
    """Return what a sentence calls an SMMU."""
    return f"SMMU {smmu.id}" if smmu.base is None else f"SMMU {smmu.id} ({smmu.base})"


def reserved(case: Case, each: Meant) -> tuple[tuple[ReservedRegion, ...], str] | None:
    """Return the reserved regions of a device and where they are from.

    :return: None where nothing tells.
    """
    function = each.function
    if function is not None and function.reserved is not None:
        if function.iommu_group is None:
            return function.reserved, case.host.source
        path = f"/sys/kernel/iommu_groups/{function.iommu_group}/reserved_regions"
        return function.reserved, path
    if each.device is not None:
        return each.device.reserved, case.host.source
    return None


def sysfs(address: PciAddress, name: str, what: object) -> Evidence:
    """Return what a file or a link of a PCI function in sysfs says."""
    return Evidence(f"/sys/bus/pci/devices/{address}/{name}", str(what))


def kernel_release(text: str | None) -> tuple[int, int] | None:
    """Return major and minor of what ``uname -r`` has; None where it has none."""
    major, _, rest = (text or "").partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return (int(major), int(digits)) if major.isdecimal() and digits else None
