"""What rules ask of a case in common: the devices that are meant, and words for several of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.doctor.finding import Evidence

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.types import HostDevice, Pa, PciAddress, PciFunction, ReservedRegion, Smmu

SYSFS = "/sys/bus/pci/devices"
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
    """Yield the devices that are looked at and are there."""
    devices, functions = case.host.device_by_address, case.host.function_by_address
    for address in case.devices:
        if missing_from(case, address) is None:
            yield Meant(address, devices.get(address), functions.get(address))


def missing_from(case: Case, address: PciAddress) -> str | None:
    """Return what lists the host's devices without one that was asked for; None where it is there.

    Of one that is not there nothing else is said: the ways that tables have for its address tell
    nothing.
    """
    functions = case.host.function_by_address
    if not case.devices_selected or address in functions:
        return None
    if case.tree is not None and case.tree.exists(SYSFS):
        folder = f"{SYSFS}/{address}"
        return None if case.tree.exists(folder) else folder
    host = case.host
    if address in host.device_by_address or not (host.functions or host.devices or host.routes):
        return None
    return host.source


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


def doorbell_pages(case: Case) -> dict[Pa, list[HostDevice]]:
    """Return the distinct doorbell pages of the devices, in the order of the devices.

    A page of the host's kernel is what iommufd maps; behind a pre-ITS each device has a doorbell of
    its own.
    """
    found: dict[Pa, list[HostDevice]] = {}
    for _address, device, _function in meant(case):
        its = None if device is None else case.host.its_by_id.get((*device.its_group, -1)[0])
        if device is None or its is None:
            continue
        doorbell = its.doorbell if its.pre_its is None else its.pre_its.offset(4 * device.device_id)
        found.setdefault(doorbell.align_down(case.host.granule), []).append(device)
    return found


def sysfs(address: PciAddress, name: str, what: object) -> Evidence:
    """Return what a file or a link of a PCI function in sysfs says."""
    return Evidence(f"{SYSFS}/{address}/{name}", str(what))


def kernel_release(text: str | None) -> tuple[int, int] | None:
    """Return major and minor of what ``uname -r`` has; None where it has none."""
    major, _, rest = (text or "").partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return (int(major), int(digits)) if major.isdecimal() and digits else None
