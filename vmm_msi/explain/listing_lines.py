"""Explain lines of listings: the address of an MSI in ``lspci -vvv``, a reserved region."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_msi.errors import InputError
from vmm_msi.explain.address_kinds import describe_iova
from vmm_msi.explain.explanation import Explanation, Program, Remedy, Subject
from vmm_msi.host.pci.reserved_regions import parse_reserved_regions
from vmm_msi.types import Iova, PciAddress, ReservedKind

if TYPE_CHECKING:
    from vmm_msi.explain.log_context import LogContext

_ADDRESS = r"((?:[0-9a-f]{4}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7])"
#: A device of lspci; one in a line about IOMMU groups.
_FUNCTION = re.compile(rf"{_ADDRESS} (?:[A-Za-z][^:\[]*(?: \[[0-9a-f]{{4}}\])?|[0-9a-f]{{4}}): ")
_GROUP = re.compile(
    rf"(?:iommu_groups/|\./)\d+/devices/{_ADDRESS}|iommu_groups/\d+/devices:?$"
    r"|(?:IOMMU )?Group:? ?\d+:?(?: |$)|IOMMU group: \d+$"
)
#: pciutils ``ls-caps.c`` cap_msi; 32 bits without, 64 with a second register.
_MSI = re.compile(r"\s*Address: ([0-9a-f]{8}|[0-9a-f]{16})\s+Data: [0-9a-f]{4}\b")
_REGION = re.compile(r"(?:.*reserved_regions:)?\s*(0x[0-9a-f]{1,16} 0x[0-9a-f]{1,16} [a-z-]+)$")

_CAPTURE = Remedy(
    "on that host: sudo vmm-msi topology capture -o host.tar.zst writes all of it to one file"
)
_REGIONS = {
    ReservedKind.SW_MSI: (
        "the SW MSI window: addresses of devices in which the host's kernel maps the doorbells of "
        "ITSes, for guests too"
    ),
    ReservedKind.HW_MSI: (
        "a HW MSI region: MSIs that a device writes there bypass the IOMMU. On x86 it is "
        "0xfee00000; on Arm the SMMU of a HiSilicon Hi161x has one, and nested guests are refused"
    ),
    ReservedKind.DIRECT: (
        "memory that firmware requires mapped 1:1 for devices of the group (RMR); VFIO refuses them"
    ),
    ReservedKind.DIRECT_RELAXABLE: (
        "memory that firmware requires mapped 1:1 until a guest takes the devices of the group"
    ),
    ReservedKind.RESERVED: "addresses that are not memory for devices of the group",
}


#: The doctor's findings about a region.
_FINDINGS = {
    ReservedKind.HW_MSI: ("hw-msi-region",),
    ReservedKind.DIRECT: ("direct-region",),
}


class ListingLines:
    """Explains the lines of a listing, of which some are about a device of a line before."""

    def __init__(self, context: LogContext) -> None:
        self._context = context
        self._device: PciAddress | None = None

    def line(self, text: str) -> Explanation | None:
        """Explain a line; None if it is not one of a listing."""
        if (match := _MSI.match(text)) is not None:
            return self._msi(int(match[1], 16))
        if (match := _REGION.match(text)) is not None:
            return _region(match[1])
        if (match := _FUNCTION.match(text)) is not None:
            name = match[1]
            self._device = PciAddress.parse(name if name.count(":") == 2 else f"0000:{name}")
            return _listing()
        return _listing() if _GROUP.match(text) or _GROUP.search(text) else None

    def _msi(self, address: int) -> Explanation | None:
        if not address:
            return None  # not enabled yet
        context = self._context
        device = self._device
        what = "the address that the kernel wrote into the MSI capability of a device"
        subjects: tuple[Subject, ...] = ()
        if device is not None:
            what = f"the address that the kernel wrote into the MSI capability of {device}"
            subjects = (
                context.by_guest_address(device) if context.in_guest else context.subject(device),
            )
        known = subjects[0].address if subjects else None
        described = describe_iova(address, context.host_device(known), context)
        return Explanation(
            id="lspci-msi-address",
            program=Program.OTHER,
            what=f"{what}: its MSIs are writes to it",
            devices=subjects,
            iova=Iova(address),
            iova_is=described.text,
            source="pciutils ls-caps.c cap_msi",
        )


def _region(listing: str) -> Explanation | None:
    try:
        (region,) = parse_reserved_regions(listing, "the text")
    except InputError:
        return None
    return Explanation(
        id="reserved-region",
        program=Program.KERNEL,
        what=f"{region}: {_REGIONS[region.kind]}",
        findings=_FINDINGS.get(region.kind, ()),
        source="Linux drivers/iommu/iommu.c iommu_group_show_resv_regions",
    )


def _listing() -> Explanation:
    return Explanation(
        id="host-listing",
        program=Program.OTHER,
        what="a listing of a host's PCI functions or IOMMU groups",
        remedies=(
            Remedy("vmm-msi topology show FILE, or doctor FILE, reads it as far as it goes"),
            _CAPTURE,
        ),
        source="pciutils lspci.c; Linux Documentation/ABI/testing/sysfs-kernel-iommu_groups",
    )
