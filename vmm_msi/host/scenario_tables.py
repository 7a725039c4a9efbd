"""The tables of a scenario file as msgspec structs, with the types of their keys."""

from __future__ import annotations

from typing import Literal

from vmm_msi.tomlfile import Number, TomlTable
from vmm_msi.types import BindOrder, ContainerPer, Firmware, ReservedKind, Stage1Mode
from vmm_msi.types.pci_function import VfioEvidence  # noqa: TC001 - msgspec reads it


class SmmuTable(TomlTable, frozen=True):
    """``[[host.smmu]]``; its id is its index in the file unless given."""

    id: Number | None = None
    base: Number | None = None
    nested: bool = True
    version: Number = Number(3)


class ItsTable(TomlTable, frozen=True):
    """``[[host.its]]``; without a base, an ITS that ITS groups name and the host does not have."""

    id: Number | None = None
    base: Number | None = None
    translate_frame: Number | None = None
    pre_its: Number | None = None
    gicv2m: bool = False


class ReservedTable(TomlTable, frozen=True):
    """``[[host.device.reserved]]``."""

    base: Number
    size: Number
    type: ReservedKind


class HostDeviceTable(TomlTable, frozen=True):
    """``[[host.device]]``; StreamID and DeviceID are derived from the address unless given."""

    address: str
    smmu: Number | None = None
    its_group: tuple[Number, ...] | None = None
    iommu_group: Number | None = None
    vectors: Number = Number(1)
    streams: Number = Number(1)
    stream_id: Number | None = None
    device_id: Number | None = None
    reserved: tuple[ReservedTable, ...] = ()


class RouteTable(TomlTable, frozen=True):
    """``[[host.route]]``: the PCI functions from ``first`` to ``last``; IDs as of a device."""

    first: str
    last: str
    smmu: Number | None = None
    its_group: tuple[Number, ...] = ()
    stream_id: Number | None = None
    device_id: Number | None = None
    one_stream_id: bool = False
    one_device_id: bool = False
    reserved: tuple[ReservedTable, ...] = ()


class FunctionTable(TomlTable, frozen=True):
    """``[[host.function]]``: a PCI function as the host's kernel or libvirt lists it."""

    address: str
    iommu_group: Number | None = None
    members: tuple[str, ...] = ()
    numa_node: Number | None = None
    driver: str | None = None
    physical_function: str | None = None
    virtual_functions: tuple[str, ...] = ()
    smmu_base: Number | None = None
    class_code: Number | None = None
    vectors: Number | None = None
    ats: bool | None = None
    pasid: bool | None = None
    dma_rids: tuple[Number, ...] = ()
    msi_rid: Number | None = None
    reserved: tuple[ReservedTable, ...] | None = None
    vfio: VfioEvidence | None = None


class SegmentTable(TomlTable, frozen=True):
    """``[[host.segment]]``."""

    number: Number
    ats: bool | None = None
    canwbs: bool | None = None


class ReservedMemoryTable(TomlTable, frozen=True):
    """``[[host.reserved_memory]]``: an RMR of the IORT."""

    base: Number
    size: Number
    smmu: Number
    first_stream: Number
    last_stream: Number
    relaxable: bool = False


class TableErrorTable(TomlTable, frozen=True):
    """``[[host.table_error]]``: an error in a firmware table that Linux tolerates."""

    table: str
    text: str


#: How a file calls the kind of a host's firmware tables.
FIRMWARE = {"acpi": Firmware.ACPI, "device-tree": Firmware.DEVICE_TREE}


class HostTable(TomlTable, frozen=True):
    """``[host]``."""

    granule: str | None = None
    smmu: tuple[SmmuTable, ...] = ()
    its: tuple[ItsTable, ...] = ()
    device: tuple[HostDeviceTable, ...] = ()
    route: tuple[RouteTable, ...] = ()
    function: tuple[FunctionTable, ...] = ()
    segment: tuple[SegmentTable, ...] = ()
    reserved_memory: tuple[ReservedMemoryTable, ...] = ()
    table_error: tuple[TableErrorTable, ...] = ()
    firmware: Literal["acpi", "device-tree"] | None = None
    missing: tuple[str, ...] = ()
    lists_all_functions: bool = True
    unsafe_interrupts: tuple[str, ...] = ()
    msi_bindings: Number | None = None


class VitsTable(TomlTable, frozen=True):
    """``[[guest.vits]]``."""

    base: Number
    id: Number | None = None


class GuestStage1Table(TomlTable, frozen=True):
    """``[[guest.stage1]]``."""

    id: str
    granule: str = "4K"
    config: Stage1Mode = Stage1Mode.TRANSLATE


class GuestDeviceTable(TomlTable, frozen=True):
    """``[[guest.device]]``."""

    host: str
    stage1: str | None = None
    vits: Number | None = None
    giova: Number | None = None
    vfio: bool = False


class MemoryTable(TomlTable, frozen=True):
    """``[[guest.memory]]``."""

    base: Number
    size: Number


class GuestDomainTable(TomlTable, frozen=True):
    """``[guest]``."""

    name: str = "guest"
    order: BindOrder = BindOrder.INTERLEAVED
    honours_rmr: bool = True
    vits: tuple[VitsTable, ...] = ()
    stage1: tuple[GuestStage1Table, ...] = ()
    device: tuple[GuestDeviceTable, ...] = ()
    memory: tuple[MemoryTable, ...] | None = None


class VmmTable(TomlTable, frozen=True):
    """``[vmm]``."""

    containers: ContainerPer = ContainerPer.DEVICE


class ScenarioFile(TomlTable, frozen=True):
    """A whole file."""

    host: HostTable
    guest: GuestDomainTable | None = None
    vmm: VmmTable = VmmTable()
