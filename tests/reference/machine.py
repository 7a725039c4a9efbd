"""Hosts and guests as plain values, stage 2 tables, the guest and where its MSIs land."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

#: GITS_TRANSLATER from the base of an ITS (GICv3 architecture, IHI 0069, 12.18).
TRANSLATER = 0x10040
#: The message of a kernel whose iommu_dma_map_msi_msg fails: a void function (until Linux 5.1).
ALL_ONES = 0xFFFF_FFFF_FFFF_FFFF
#: The range of QEMU's RMR node (hw/arm/virt-acpi-build.c).
RMR = (0x800_0000, 0x10_0000)

SW_MSI, HW_MSI, RESERVED = "sw-msi", "hw-msi", "reserved"
DIRECT, DIRECT_RELAXABLE = "direct", "direct-relaxable"
#: What a stream table entry of the guest makes of stage 1 for a write without a PASID.
TRANSLATE, BYPASS, S1DSS_BYPASS = "translate", "bypass", "s1dss-bypass"


class RefusalError(Exception):
    """A call is refused.

    :param number: errno as the caller of the ioctl sees it; None if the VMM refuses it itself.
    :param inside: errno of the function in the kernel that refused.
    """

    def __init__(self, number: int | None, inside: int | None = None) -> None:
        super().__init__(number, inside)
        self.number = number
        self.inside = number if inside is None else inside


@dataclass(frozen=True)
class Device:
    """A PCI function of the host.

    :param its: base address of the physical ITS that Linux uses for it.
    :param regions: reserved regions: base, size, kind.
    :param assigned: the guest has it; the parameters after it are the guest's.
    :param gdb: IPA of the doorbell page of the virtual ITS.
    :param giova: where its stage 1 maps the doorbell page.
    :param guest_vfio: VFIO in the guest uses it.
    """

    name: str
    smmu: int
    its: int
    group: int
    regions: tuple[tuple[int, int, str], ...] = ((*RMR, SW_MSI),)
    streams: int = 1
    assigned: bool = True
    stage1: str = ""
    gdb: int = 0
    giova: int = 0
    guest_vfio: bool = False

    @property
    def hdb(self) -> int:
        """The physical doorbell."""
        return self.its + TRANSLATER

    @property
    def window(self) -> tuple[int, int] | None:
        """The software MSI window: base and size."""
        return next(((base, size) for base, size, kind in self.regions if kind == SW_MSI), None)


@dataclass(frozen=True)
class Machine:
    """A host, a guest on it and its VMM.

    :param page: PAGE_SIZE of the host, the granule of stage 2.
    :param granules: page size of each stage 1, by name.
    :param modes: of each stage 1 that does not translate, by name.
    :param ram: IPA and size of each piece of guest RAM.
    :param single_stage: SMMUs without one of the stages.
    :param containers: what the VMM opens a VFIO container for: device, stage1 or guest.
    """

    page: int
    devices: tuple[Device, ...]
    granules: dict[str, int]
    ram: tuple[tuple[int, int], ...] = ((0x4000_0000, 0x4000_0000),)
    single_stage: frozenset[int] = frozenset()
    honours_rmr: bool = True
    containers: str = "device"
    modes: dict[str, str] = field(default_factory=dict)

    def group(self, number: int) -> list[Device]:
        """Return the devices of an IOMMU group, assigned or not."""
        return [device for device in self.devices if device.group == number]

    def overlaps_ram(self, base: int, size: int) -> bool:
        """Return whether guest RAM is anywhere in a range of IPAs."""
        return any(overlap(base, size, start, length) for start, length in self.ram)


def overlap(base: int, size: int, other: int, length: int) -> bool:
    """Return whether two ranges have an address in common."""
    return base < other + length and other < base + size


@dataclass(eq=False)
class Stage2:
    """A stage 2 table: guest RAM and pages of doorbells."""

    machine: Machine
    pages: dict[int, int] = field(default_factory=dict)

    def map(self, ipa: int, pa: int) -> None:
        """iommu_map() of one page: also a second mapping of the same target is refused.

        drivers/iommu/io-pgtable-arm.c arm_lpae_init_pte (4.20 to 7.2).
        """
        if ipa % self.machine.page:
            raise RefusalError(errno.EINVAL)
        if ipa in self.pages or self.machine.overlaps_ram(ipa, self.machine.page):
            raise RefusalError(errno.EEXIST)
        self.pages[ipa] = pa

    def unmap(self, ipa: int) -> None:
        """iommu_unmap() of one page."""
        del self.pages[ipa]

    def walk(self, ipa: int) -> int | str | None:
        """Return the physical address, "ram", or None for a fault."""
        start = ipa - ipa % self.machine.page
        if start in self.pages:
            return self.pages[start] + ipa % self.machine.page
        return "ram" if self.machine.overlaps_ram(ipa, 1) else None


@dataclass(eq=False)
class Guest:
    """The guest's kernel: an IOMMU domain per stage 1, with its doorbell pages and RMR ranges.

    A device is attached to its IOMMU domain at probe, and its driver requests interrupts then. The
    page of their doorbell stays until the IOMMU domain is freed after its last device:
    drivers/iommu/dma-iommu.c iommu_dma_get_msi_page, iommu_put_dma_cookie; drivers/iommu/iommu.c.
    """

    machine: Machine
    #: The guest has an RMR node.
    rmr: bool = False
    attached: set[str] = field(default_factory=set)
    tables: dict[str, dict[int, int]] = field(default_factory=dict)

    def attach(self, device: Device) -> None:
        """Attach a device to its IOMMU domain, where RMR ranges are mapped first, and map gIOVA.

        In an identity domain neither is mapped: drivers/iommu/iommu.c iommu_dma_prepare_msi,
        iommu_create_device_direct_mappings.
        """
        self.attached.add(device.name)
        if device.stage1 in self.machine.modes:
            return
        granule = self.machine.granules[device.stage1]
        if device.stage1 not in self.tables:
            pages = range(RMR[0], RMR[0] + RMR[1], granule)
            identity = self.rmr and self.machine.honours_rmr
            self.tables[device.stage1] = {page: page for page in pages} if identity else {}
        table = self.tables[device.stage1]
        table.setdefault(device.giova - device.giova % granule, device.gdb - device.gdb % granule)

    def detach(self, device: Device) -> None:
        """Detach a device; the last one of a stage 1 takes the IOMMU domain with it."""
        self.attached.discard(device.name)
        names = {d.name for d in self.machine.devices if d.stage1 == device.stage1}
        if not names & self.attached:
            self.tables.pop(device.stage1, None)

    def walk(self, stage1: str | None, iova: int) -> int | None:
        """Return the IPA, or None for a fault."""
        if stage1 is None or stage1 in self.machine.modes:
            return iova
        granule = self.machine.granules[stage1]
        page = self.tables.get(stage1, {}).get(iova - iova % granule)
        return None if page is None else page + iova % granule


def landing(guest: Guest, device: Device, stage1: str | None, stage2: Stage2, iova: int) -> str:
    """Return the outcome of an MSI that the device writes to ``iova``."""
    ipa = guest.walk(stage1, iova)
    if ipa is None:
        return "s1-fault"
    address = stage2.walk(ipa)
    if address is None:
        return "s2-fault"
    return "delivered" if address == device.hdb else "misrouted"
