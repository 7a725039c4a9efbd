"""A host: its ITSes and SMMUs, its devices and how they reach them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

# PciFunction is imported at run time too: JSON readers build the fields from their types.
from vmm_msi.types.address import (
    SW_MSI_WINDOW,
    DeviceId,
    Granule,
    Pa,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    StreamId,
)
from vmm_msi.types.pci_function import PciFunction  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Size of a frame of an ITS: Arm GICv3 architecture specification, IHI 0069, 12.18.
ITS_FRAME = 0x10000
#: Offset of GITS_TRANSLATER from the base of an ITS: the translation register frame follows the
#: control frame (IHI 0069, 12.18 and 12.19).
ITS_TRANSLATER_OFFSET = ITS_FRAME + 0x40
ITS_TRANSLATER_PAGE_OFFSET = ITS_FRAME
#: Size of a frame of a GICv2m, and offset of MSI_SETSPI_NS in it: Linux
#: ``drivers/irqchip/irq-gic-v2m.c`` acpi_parse_madt_msi, V2M_MSI_SETSPI_NS.
GICV2M_FRAME = 0x1000
_SETSPI_OFFSET = 0x40
#: First address that neither an SMMUv3 (IHI 0070, 3.4: 52 bits) nor a CPU can emit.
PA_END = 1 << 52


class Firmware(StrEnum):
    """How firmware describes SMMUs and ITSes to a kernel; the values are for messages."""

    ACPI = "ACPI"
    DEVICE_TREE = "the device tree"


@dataclass(frozen=True, slots=True)
class Its:
    """A physical Interrupt Translation Service; of a GICv5 one of its translate frames.

    Or a frame of a GICv2m, which a device writes the number of an SPI to, in the place of an ITS.

    :param base: address of its control frame; of a GICv5 of its configuration frame.
    :param translate_frame: address of the frame with the doorbell; None for a GICv3 ITS, whose
        translation frame follows its control frame.
    :param pre_its: address of the window of a pre-ITS, which derives the DeviceID from the address
        of a write: each device has a doorbell of its own in the window (Linux
        ``drivers/irqchip/irq-gic-v3-its.c`` its_enable_quirk_socionext_synquacer).
    :param gicv2m: it is a frame of a GICv2m.
    """

    id: int
    base: Pa
    translate_frame: Pa | None = None
    pre_its: Pa | None = None
    gicv2m: bool = False

    @property
    def is_gicv5(self) -> bool:
        """Whether it is the ITS of a GICv5."""
        return self.translate_frame is not None

    @property
    def isolates_msis(self) -> bool:
        """Whether a device can raise its own interrupts only.

        IRQ_DOMAIN_FLAG_ISOLATED_MSI in Linux ``drivers/irqchip/irq-gic-v3-its.c`` and
        ``irq-gic-v5-its.c``, which a pre-ITS clears, and ``irq-gic-v2m.c`` does not set.
        """
        return self.pre_its is None and not self.gicv2m

    @property
    def doorbell(self) -> Pa:
        """The physical address that MSIs are written to (hDB).

        GITS_TRANSLATER; of a GICv5 ITS_TRANSLATER, the first register of the translate frame: Linux
        ``drivers/irqchip/irq-gic-v5-its.c`` gicv5_its_compose_msi_msg. Of a GICv2m MSI_SETSPI_NS
        (``irq-gic-v2m.c`` gicv2m_get_msi_addr).
        """
        if self.gicv2m:
            return self.base.offset(_SETSPI_OFFSET)
        if self.translate_frame is not None:
            return self.translate_frame
        return self.base.offset(ITS_TRANSLATER_OFFSET)

    def doorbell_of(self, device: DeviceId) -> Pa:
        """Return the physical address that a device writes its MSIs to.

        Behind a pre-ITS it is the device's own (``its_irq_get_msi_base_pre_its``), else
        :attr:`doorbell`.
        """
        return self.doorbell if self.pre_its is None else self.pre_its.offset(4 * device)

    @property
    def doorbell_page(self) -> Pa:
        """The 64 KiB page that holds the doorbell."""
        return self.doorbell.align_down(ITS_FRAME)


@dataclass(frozen=True, slots=True)
class Smmu:
    """A physical SMMU.

    :param base: address of its registers; None if the source does not have it.
    :param nested: it has both stages.
    :param version: of the architecture: 3 for an SMMUv3, 2 for an SMMUv1 or v2.
    """

    id: int
    base: Pa | None = None
    nested: bool = True
    version: int = 3


@dataclass(frozen=True, slots=True)
class HostDevice:
    """A PCI function of the host, as the SMMU and the ITS see it.

    :param smmu: id of the SMMU that its DMA passes through; None if it bypasses all.
    :param its_group: ids of the ITSes it may use; Linux takes the first.
    :param iommu_group: number of the group it can be assigned with; groups are isolated from
        each other, devices of one group are not.
    :param vectors: number of MSIs it can signal.
    :param streams: number of StreamIDs it has; ``stream_id`` is the first.
    """

    address: PciAddress
    smmu: int | None
    stream_id: StreamId
    its_group: tuple[int, ...]
    device_id: DeviceId
    iommu_group: int
    vectors: int = 1
    reserved: tuple[ReservedRegion, ...] = (SW_MSI_WINDOW,)
    streams: int = 1

    @property
    def its(self) -> int:
        """The ITS that Linux uses: the first of the group (``iort_dev_find_its_id``).

        Where the host has no ITS with this id, the device has no MSI domain: Linux tries none of
        the others (``iort_get_device_domain``).
        """
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
    """A range of RequesterIDs that one SMMU and one ITS group serve.

    IDs count up with the RequesterID, or all of the range share one.

    :param segment: PCI segment.
    :param first: first RequesterID of the range.
    :param last: last RequesterID of the range.
    :param smmu: id of the SMMU; None if the range bypasses all.
    :param stream_base: StreamID of ``first``.
    :param its_group: ITS ids in the order of the table; empty without an ITS.
    :param device_base: DeviceID of ``first``.
    :param one_stream: all have the StreamID of ``first``.
    :param one_device: all have the DeviceID of ``first``.
    :param reserved: regions that the kernel reserves for its devices because of firmware, in
        addition to the software MSI window.
    """

    segment: int
    first: int
    last: int
    smmu: int | None
    stream_base: int
    its_group: tuple[int, ...]
    device_base: int
    one_stream: bool = False
    one_device: bool = False
    reserved: tuple[ReservedRegion, ...] = ()

    def stream_of(self, rid: int) -> StreamId:
        """Return the StreamID of a RequesterID of the range."""
        return StreamId(self.stream_base + (0 if self.one_stream else rid - self.first))

    def device_of(self, rid: int) -> DeviceId:
        """Return the DeviceID of a RequesterID of the range."""
        return DeviceId(self.device_base + (0 if self.one_device else rid - self.first))

    def device(self, address: PciAddress, iommu_group: int, vectors: int = 1) -> HostDevice:
        """Return the device at ``address``, which lies in this range."""
        return HostDevice(
            address=address,
            smmu=self.smmu,
            stream_id=self.stream_of(address.rid),
            its_group=self.its_group,
            device_id=self.device_of(address.rid),
            iommu_group=iommu_group,
            vectors=vectors,
            reserved=(SW_MSI_WINDOW, *self.reserved),
        )


@dataclass(frozen=True, slots=True)
class PciSegment:
    """Attributes of the PCI hosts of one segment; None if firmware does not have them.

    :param ats: ATS works.
    :param canwbs: stage 2 alone can make their accesses write-back cacheable and shareable.
    """

    number: int
    ats: bool | None = None
    canwbs: bool | None = None


@dataclass(frozen=True, slots=True)
class ReservedMemory:
    """Memory that firmware requires mapped 1:1 for StreamIDs: an RMR of the IORT.

    :param smmu: id of the SMMU.
    :param first_stream: first StreamID that needs it.
    :param last_stream: last StreamID that needs it.
    :param relaxable: the operating system may drop the mapping when it takes the device over.
    """

    base: int
    size: int
    smmu: int
    first_stream: int
    last_stream: int
    relaxable: bool = False


@dataclass(frozen=True, slots=True)
class TableError:
    """An error in a firmware table that Linux tolerates.

    :param table: the table's file.
    :param text: the byte offset and what is wrong there.
    """

    table: str
    text: str

    def __str__(self) -> str:
        return f"{self.table}: {self.text}"


@dataclass(frozen=True)
class HostTopology:
    """A host as a source describes it: SMMUs, ITSes, devices and how they reach them.

    :param source: its file, folder or URI, for messages.
    :param granule: page size of stage 2, the host kernel's PAGE_SIZE.
    :param granule_known: the source has ``granule``; else it is assumed.
    :param devices: devices that the source lists.
    :param routes: ranges in which any device can be resolved, disjoint per segment.
    :param functions: PCI functions that the host's operating system lists.
    :param segments: attributes of the PCI segments in firmware.
    :param reserved_memory: memory that firmware requires mapped 1:1.
    :param missing: sentences about tables that the source lacks or that could not be read, each
        with what to use instead; for messages about devices that cannot be resolved.
    :param firmware: the kind of tables that the SMMUs, ITSes and routes are from; None if they are
        from elsewhere, or unknown.
    :param table_errors: errors in its tables that Linux tolerates.
    :param lists_all_functions: ``functions`` are all of the host's, not a selection.
    :param unsafe_interrupts: modules that take devices whose MSIs are not isolated, since their
        parameter allow_unsafe_interrupts is on: ``iommufd``, ``vfio_iommu_type1``.
    :param msi_bindings: version of the kernel's interface for guest MSI bindings
        (``docs/watch.md``); None if it has none, or if only root can see it.
    """

    source: str
    granule: Granule
    smmus: tuple[Smmu, ...]
    itses: tuple[Its, ...]
    devices: tuple[HostDevice, ...] = ()
    routes: tuple[PciRoute, ...] = ()
    functions: tuple[PciFunction, ...] = ()
    segments: tuple[PciSegment, ...] = ()
    reserved_memory: tuple[ReservedMemory, ...] = ()
    granule_known: bool = True
    missing: tuple[str, ...] = ()
    table_errors: tuple[TableError, ...] = ()
    lists_all_functions: bool = True
    firmware: Firmware | None = None
    unsafe_interrupts: frozenset[str] = frozenset()
    msi_bindings: int | None = None

    @property
    def is_described(self) -> bool:
        """Whether the source shows which SMMUs and ITSes devices have, or that they have none."""
        return bool(self.routes or self.devices) or self.firmware is not None

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

    @cached_property
    def function_by_address(self) -> Mapping[PciAddress, PciFunction]:
        """The functions by address."""
        return {function.address: function for function in self.functions}
