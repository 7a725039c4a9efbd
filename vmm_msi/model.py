"""Frozen value types that every other module speaks in.

Addresses are of three types that never mix: :class:`Iova` before stage 1, :class:`Ipa` between the
stages (a guest physical address), :class:`Pa` after stage 2. "Domain" alone is never used: a
:class:`GuestDomain` is libvirt's, an IOMMU domain is the kernel's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Self

from vmm_msi.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Offset of GITS_TRANSLATER from the base of an ITS: the translation register frame follows the
#: 64 KiB control frame (Arm GICv3 architecture specification, IHI 0069, 12.18 and 12.19).
ITS_TRANSLATER_OFFSET = 0x10040
ITS_TRANSLATER_PAGE_OFFSET = 0x10000


class Address(int):
    """An address in one of the three address spaces, printed in hexadecimal."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self):#x})"

    def __str__(self) -> str:
        return f"{int(self):#x}"

    def align_down(self, size: int) -> Self:
        """Return the address aligned down to ``size`` bytes, a power of two."""
        return type(self)(self & ~(size - 1))

    def is_aligned(self, size: int) -> bool:
        """Tell whether the address is a multiple of ``size`` bytes, a power of two."""
        return not self & (size - 1)

    def offset(self, distance: int) -> Self:
        """Return the address ``distance`` bytes further, in the same address space."""
        return type(self)(self + distance)


class Iova(Address):
    """An address that a device emits, before stage 1."""

    __slots__ = ()


class Ipa(Address):
    """An intermediate physical address: after stage 1, before stage 2."""

    __slots__ = ()


class Pa(Address):
    """A host physical address, after stage 2."""

    __slots__ = ()


class StreamId(int):
    """The number by which an SMMU knows a device."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{int(self):#x}"


class DeviceId(int):
    """The number by which an ITS knows a device."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{int(self):#x}"


class Granule(IntEnum):
    """Page size of one translation stage, in bytes."""

    K4 = 4096
    K16 = 16384
    K64 = 65536

    @classmethod
    def parse(cls, text: str) -> Granule:
        """Read ``4K``, ``16K`` or ``64K``.

        :raise InputError: when it is none of them.
        """
        try:
            return cls[f"K{text.removesuffix('K')}"] if text.endswith("K") else cls(int(text))
        except (KeyError, ValueError):
            raise InputError(f"granule {text!r}: not one of 4K, 16K, 64K") from None

    def __str__(self) -> str:
        return f"{self.value >> 10}K"


_PCI = re.compile(
    r"(?:(?P<segment>[0-9a-f]{1,4}):)?(?P<bus>[0-9a-f]{1,2}):(?P<device>[01]?[0-9a-f])\.(?P<function>[0-7])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, order=True)
class PciAddress:
    """Segment (libvirt and Linux say PCI domain), bus, device and function."""

    segment: int
    bus: int
    device: int
    function: int

    @classmethod
    def parse(cls, text: str) -> PciAddress:
        """Read ``0000:01:00.0``, ``01:00.0`` or libvirt's ``pci_0000_01_00_0``.

        :raise InputError: when it is none of them.
        """
        plain = text
        if text.startswith("pci_"):
            plain = re.sub(r"^pci_(\w+)_(\w+)_(\w+)_(\w)$", r"\1:\2:\3.\4", text)
        match = _PCI.fullmatch(plain)
        if match is None:
            raise InputError(
                f"PCI address {text!r}: not of the form 0000:01:00.0 (segment:bus:device.function)"
            )
        part = {key: int(value or "0", 16) for key, value in match.groupdict().items()}
        return cls(**part)

    @classmethod
    def from_rid(cls, segment: int, rid: int) -> PciAddress:
        """Take the address apart that ``rid``, a 16-bit RequesterID, stands for."""
        return cls(segment, rid >> 8, rid >> 3 & 0x1F, rid & 7)

    @property
    def rid(self) -> int:
        """The RequesterID: bus in bits 15:8, device in 7:3, function in 2:0."""
        return self.bus << 8 | self.device << 3 | self.function

    def __str__(self) -> str:
        return f"{self.segment:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"


class ReservedKind(StrEnum):
    """Type of a reserved region, as in ``/sys/kernel/iommu_groups/*/reserved_regions``.

    sysfs prints both ``HW_MSI`` and ``SW_MSI`` as ``msi``: Linux
    ``drivers/iommu/iommu.c`` iommu_group_resv_type_string.
    """

    DIRECT = "direct"
    DIRECT_RELAXABLE = "direct-relaxable"
    RESERVED = "reserved"
    HW_MSI = "hw-msi"
    SW_MSI = "sw-msi"


@dataclass(frozen=True, slots=True)
class ReservedRegion:
    """A range of IOVAs, ``size`` bytes from ``base``, that a device may not use freely."""

    base: int
    size: int
    kind: ReservedKind

    @property
    def last(self) -> int:
        """The last address of the region."""
        return self.base + self.size - 1

    def overlaps(self, base: int, size: int) -> bool:
        """Tell whether ``size`` bytes from ``base`` touch the region."""
        return base <= self.last and self.base <= base + size - 1

    def __str__(self) -> str:
        return f"{self.base:#x}-{self.last:#x} ({self.kind})"


#: The software MSI window that Linux's SMMU driver reserves for every device:
#: ``drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c`` MSI_IOVA_BASE and MSI_IOVA_LENGTH.
SW_MSI_WINDOW = ReservedRegion(0x0800_0000, 0x0010_0000, ReservedKind.SW_MSI)


@dataclass(frozen=True, slots=True)
class Its:
    """A physical GICv3 Interrupt Translation Service."""

    id: int
    base: Pa

    @property
    def doorbell(self) -> Pa:
        """The physical address of GITS_TRANSLATER (hDB)."""
        return self.base.offset(ITS_TRANSLATER_OFFSET)

    @property
    def doorbell_page(self) -> Pa:
        """The 64 KiB page that holds GITS_TRANSLATER."""
        return self.base.offset(ITS_TRANSLATER_PAGE_OFFSET)


@dataclass(frozen=True, slots=True)
class Smmu:
    """A physical SMMUv3.

    :param base: address of its registers; None where the source does not tell.
    :param nested: it has both stages.
    """

    id: int
    base: Pa | None = None
    nested: bool = True


@dataclass(frozen=True, slots=True)
class HostDevice:
    """A PCI function of the host, as the SMMU and the ITS see it.

    :param smmu: id of the SMMU its DMA passes through; None where it passes through none.
    :param its_group: ids of the ITSes it may use; Linux takes the first.
    :param iommu_group: number of the group it can be assigned with; groups are isolated from
        each other, devices of one group are not.
    :param vectors: number of MSIs it can signal.
    """

    address: PciAddress
    smmu: int | None
    stream_id: StreamId
    its_group: tuple[int, ...]
    device_id: DeviceId
    iommu_group: int
    vectors: int = 1
    reserved: tuple[ReservedRegion, ...] = (SW_MSI_WINDOW,)

    @property
    def its(self) -> int:
        """The ITS that Linux uses: the first of the group (``iort_find_domain_id``)."""
        return self.its_group[0]

    @property
    def sw_msi_window(self) -> ReservedRegion | None:
        """The window from which the kernel takes doorbell addresses."""
        return next((r for r in self.reserved if r.kind is ReservedKind.SW_MSI), None)

    @property
    def hw_msi(self) -> ReservedRegion | None:
        """A region in which MSIs bypass the SMMU, if the device has one."""
        return next((r for r in self.reserved if r.kind is ReservedKind.HW_MSI), None)


@dataclass(frozen=True, slots=True)
class PciRoute:
    """A range of RequesterIDs that one SMMU and one ITS group serve, linearly.

    :param segment: PCI segment.
    :param first: first RequesterID of the range.
    :param last: last RequesterID of the range.
    :param smmu: id of the SMMU, None where the range bypasses all of them.
    :param stream_base: StreamID of ``first``.
    :param its_group: ITS ids in the order of the table; empty where there is none.
    :param device_base: DeviceID of ``first``.
    """

    segment: int
    first: int
    last: int
    smmu: int | None
    stream_base: int
    its_group: tuple[int, ...]
    device_base: int

    def device(self, address: PciAddress, iommu_group: int, vectors: int = 1) -> HostDevice:
        """Return the device at ``address``, which lies in this range."""
        distance = address.rid - self.first
        return HostDevice(
            address=address,
            smmu=self.smmu,
            stream_id=StreamId(self.stream_base + distance),
            its_group=self.its_group,
            device_id=DeviceId(self.device_base + distance),
            iommu_group=iommu_group,
            vectors=vectors,
        )


@dataclass(frozen=True)
class HostTopology:
    """What is known of a host: SMMUs, ITSes, devices and the way from the ones to the others.

    :param source: the file or folder it was read from, for messages.
    :param granule: page size of stage 2, the host kernel's PAGE_SIZE.
    :param devices: devices the source lists by address.
    :param routes: ranges in which any device can be resolved, disjoint per segment.
    """

    source: str
    granule: Granule
    smmus: tuple[Smmu, ...]
    itses: tuple[Its, ...]
    devices: tuple[HostDevice, ...] = ()
    routes: tuple[PciRoute, ...] = ()

    @cached_property
    def its_by_id(self) -> Mapping[int, Its]:
        """The ITSes by id."""
        return {its.id: its for its in self.itses}

    @cached_property
    def smmu_by_id(self) -> Mapping[int, Smmu]:
        """The SMMUs by id."""
        return {smmu.id: smmu for smmu in self.smmus}

    @cached_property
    def device_by_address(self) -> Mapping[PciAddress, HostDevice]:
        """The listed devices by address."""
        return {device.address: device for device in self.devices}


@dataclass(frozen=True, slots=True)
class Vits:
    """A virtual ITS; its doorbell page (gDB) is an IPA.

    :param pits: ids of the physical ITSes that back it; empty where the guest's VMM decides.
    """

    id: int
    base: Ipa

    @property
    def gdb(self) -> Ipa:
        """The page that holds the virtual GITS_TRANSLATER."""
        return self.base.offset(ITS_TRANSLATER_PAGE_OFFSET)


@dataclass(frozen=True, slots=True)
class Stage1:
    """One stage 1 that the guest owns: a translation table with a granule."""

    id: str
    granule: Granule = Granule.K4


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """``size`` bytes of guest RAM from the IPA ``base``."""

    base: Ipa
    size: int


@dataclass(frozen=True, slots=True)
class GuestDevice:
    """A host device as the guest uses it.

    :param stage1: id of the stage 1 the guest attaches it to.
    :param vits: id of the virtual ITS the guest takes its MSIs from.
    :param giova: the address the guest's stage 1 maps to that vITS's doorbell page.
    """

    host: PciAddress
    stage1: str
    vits: int
    giova: Iova


class Order(StrEnum):
    """Order of the calls for several devices."""

    #: attach, bind and prepare one device, then the next: what a VMM does.
    INTERLEAVED = "interleaved"
    #: attach and bind all devices, then prepare all.
    BATCHED = "batched"


@dataclass(frozen=True)
class GuestDomain:
    """A guest (libvirt's domain): its virtual ITSes, stage 1 tables, devices and habits.

    :param memory: its RAM; QEMU's virt board puts it at 1 GiB.
    :param honours_rmr: it maps the ranges of an IORT RMR node 1:1 at stage 1.
    """

    name: str
    vits: tuple[Vits, ...]
    stage1: tuple[Stage1, ...]
    devices: tuple[GuestDevice, ...]
    order: Order = Order.INTERLEAVED
    honours_rmr: bool = True
    memory: tuple[MemoryRange, ...] = (MemoryRange(Ipa(0x4000_0000), 0x4000_0000),)

    @cached_property
    def vits_by_id(self) -> Mapping[int, Vits]:
        """The virtual ITSes by id."""
        return {vits.id: vits for vits in self.vits}

    @cached_property
    def stage1_by_id(self) -> Mapping[str, Stage1]:
        """The stage 1 tables by id."""
        return {stage1.id: stage1 for stage1 in self.stage1}

    @cached_property
    def device_by_address(self) -> Mapping[PciAddress, GuestDevice]:
        """The assigned devices by host address."""
        return {device.host: device for device in self.devices}

    def gdb(self, device: GuestDevice) -> Ipa:
        """Return the doorbell page of the vITS that ``device`` uses."""
        return self.vits_by_id[device.vits].gdb


@dataclass(frozen=True, slots=True)
class Scenario:
    """A host and a guest on it."""

    host: HostTopology
    guest: GuestDomain


class Outcome(StrEnum):
    """What became of one MSI."""

    DELIVERED = "delivered"
    S1_FAULT = "s1-fault"
    S2_FAULT = "s2-fault"
    MISROUTED = "misrouted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One step of an MSI on its way.

    :param step: ``programmed``, ``s1``, ``s2``, ``doorbell`` or ``its``.
    :param values: what was seen there: addresses are hex strings, the rest ints or words.
    """

    step: str
    values: Mapping[str, str | int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the MSIs ``first`` to ``first + count - 1`` of one device.

    All vectors of a device write to one doorbell address, so they take one way through the SMMU
    and differ in nothing but the EventID and the LPI, which count up with the vector.

    :param its: id of the ITS that was reached, None where none was.
    :param expected_its: id of the ITS that knows the device.
    :param programmed: doorbell address in the device; None where it was not programmed.
    :param errno: positive error number of a refusal, None where it has none.
    :param lpi: LPI of vector ``first`` where it was delivered.
    """

    device: PciAddress
    first: int
    count: int
    outcome: Outcome
    its: int | None
    expected_its: int
    programmed: Iova | None = None
    errno: int | None = None
    reason: str = ""
    trace: tuple[TraceStep, ...] = ()
    lpi: int | None = None


@dataclass(frozen=True, slots=True)
class Costs:
    """What a strategy uses.

    :param s2_domains: stage 2 tables.
    :param s2_mappings: doorbell pages mapped in all of them; guest RAM is not counted.
    :param sw_msi_slots: pages taken from the software MSI window.
    :param bindings: guest bindings the kernel holds.
    """

    s2_domains: int = 0
    s2_mappings: int = 0
    sw_msi_slots: int = 0
    bindings: int = 0


@dataclass(frozen=True, slots=True)
class VsmmuPlan:
    """One virtual SMMUv3 of the guest, in front of devices of one physical SMMU.

    :param smmu: id of the physical SMMU.
    :param its: id of the physical ITS its devices use, where the strategy separates by ITS.
    :param accelerated: it uses the physical SMMU's own stage 1.
    """

    smmu: int
    devices: tuple[PciAddress, ...]
    its: int | None = None
    accelerated: bool = True


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """What a strategy wants in the domain XML.

    :param iommufd: devices are assigned through iommufd rather than VFIO's type1 container.
    """

    vsmmus: tuple[VsmmuPlan, ...]
    iommufd: bool = True
