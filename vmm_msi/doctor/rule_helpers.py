"""Helpers that several rules share: the selected devices of a case, and lists as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence
from vmm_msi.errors import UnreadableError
from vmm_msi.host.files import shown_path
from vmm_msi.host.msi_bindings import PATH
from vmm_msi.host.pci.sysfs import DEVICES, GROUPS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_msi.doctor.case import Case, SelectedDevice
    from vmm_msi.types import HostDevice, Pa, PciAddress, ReservedRegion, Smmu


#: Devices that a sentence names; the rest are counted.
MAX_NAMED = 4

#: Parameters that permit devices whose MSIs are not isolated: for iommufd, for VFIO containers.
UNSAFE_IOMMUFD = "iommufd.allow_unsafe_interrupts"
UNSAFE_CONTAINER = "vfio_iommu_type1.allow_unsafe_interrupts"


def nested_devices(case: Case) -> Sequence[SelectedDevice]:
    """Return the devices to check that are, or will be, behind an accelerated vSMMU."""
    return case.selected_nested


def has_no_devices(case: Case) -> bool:
    """Return whether a host's tables show no device to check, though no device was selected."""
    return case.host.firmware is not None and not (case.devices_selected or case.devices)


def by_smmu(
    case: Case, devices: Iterable[SelectedDevice]
) -> Iterator[tuple[Smmu, list[PciAddress]]]:
    """Yield the SMMUs of devices, each with its devices."""
    addresses: dict[int, list[PciAddress]] = {}
    for address, device, _function in devices:
        if device is not None and device.smmu is not None:
            addresses.setdefault(device.smmu, []).append(address)
    for number in sorted(addresses):
        smmu = case.host.smmu_by_id.get(number)
        if smmu is not None:
            yield smmu, addresses[number]


def named(items: Iterable[object], count: int | None = None) -> str:
    """Return a list as text: its first items, and how many more there are.

    :param count: the number of items if ``items`` are only the first of them.
    """
    names = [str(item) for item in items]
    shown, more = names[:MAX_NAMED], (len(names) if count is None else count) - MAX_NAMED
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    if len(shown) > 1:
        return f"{', '.join(shown[:-1])} and {shown[-1]}"
    return "".join(shown)


def smmu_name(smmu: Smmu) -> str:
    """Return the name of an SMMU for messages."""
    return f"SMMU {smmu.id}" if smmu.base is None else f"SMMU {smmu.id} ({smmu.base})"


def reserved_regions(
    case: Case, selected: SelectedDevice
) -> tuple[tuple[ReservedRegion, ...], str] | None:
    """Return the reserved regions of a device and their source.

    :return: None if no source reports them.
    """
    function = selected.function
    if function is not None and function.reserved is not None:
        if function.iommu_group is None:
            return function.reserved, case.host.source
        path = f"{GROUPS}/{function.iommu_group}/reserved_regions"
        return function.reserved, path
    if selected.device is not None:
        return selected.device.reserved, case.host.source
    return None


def doorbell_pages(case: Case) -> dict[Pa, list[HostDevice]]:
    """Return the distinct doorbell pages of the nested devices, in the order of the devices.

    iommufd maps pages of the host's page size; behind a pre-ITS each device has its own doorbell.
    """
    pages: dict[Pa, list[HostDevice]] = {}
    for _address, device, _function in nested_devices(case):
        its = None if device is None else case.host.its_by_id.get((*device.its_group, -1)[0])
        if device is None or its is None:
            continue
        doorbell = its.doorbell_of(device.device_id)
        pages.setdefault(doorbell.align_down(case.host.granule), []).append(device)
    return pages


def sysfs(address: PciAddress, name: str, value: object) -> Evidence:
    """Return evidence from a file or a link of a PCI function in sysfs."""
    return Evidence(f"{DEVICES}/{address}/{name}", str(value))


def kernel_release(text: str | None) -> tuple[int, int] | None:
    """Return major and minor of a release as ``uname -r`` prints it; None if it has neither."""
    major, _, rest = (text or "").partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return (int(major), int(digits)) if major.isdecimal() and digits else None


def is_on(case: Case, parameter: str) -> bool:
    """Return whether a parameter is known to be on: Linux ``kernel/params.c`` param_get_bool."""
    return case.kernel.parameters.get(parameter, "N").strip().upper() in {"Y", "1"}


def unsafe_parameter(case: Case, address: PciAddress) -> str:
    """Return the parameter that permits a device although its MSIs are not isolated."""
    return UNSAFE_IOMMUFD if address in case.on_iommufd else UNSAFE_CONTAINER


def _file(case: Case) -> str:
    return str(PATH) if case.tree is None else shown_path(case.tree, str(PATH))


def _unreadable(case: Case) -> str:
    """Return why the file cannot be read; empty if it can, or does not exist."""
    if case.tree is not None:
        try:
            case.tree.read(str(PATH))
        except UnreadableError as error:
            return error.reason
    return ""


def interface_evidence(case: Case) -> Evidence:
    """Return what is known of the kernel's interface for guest MSI bindings."""
    version = case.host.msi_bindings
    if version is not None:
        return Evidence(_file(case), f"version {version}")
    return Evidence(_file(case), _unreadable(case) or "missing")


def no_interface(case: Case) -> str:
    """Return why the kernel does not bind, as a clause."""
    if case.host.msi_bindings is not None:
        return f"version {case.host.msi_bindings} of its interface for guest bindings is unknown"
    if reason := _unreadable(case):
        return (
            "whether the host's kernel has an interface for guest MSI bindings is unknown to this "
            f"user: {reason}; root can read it"
        )
    return f"the host's kernel has no interface for guest MSI bindings ({PATH})"
