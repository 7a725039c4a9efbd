"""The tables of a scenario file as msgspec structs, with the types of their keys."""

from __future__ import annotations

from vmm_msi.tomlfile import Number, TomlTable
from vmm_msi.types import BindOrder, ContainerPer, ReservedKind, Stage1Mode


class SmmuTable(TomlTable, frozen=True):
    """``[[host.smmu]]``; its id is its index in the file unless given."""

    id: Number | None = None
    base: Number | None = None
    nested: bool = True


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


class HostTable(TomlTable, frozen=True):
    """``[host]``."""

    granule: str | None = None
    smmu: tuple[SmmuTable, ...] = ()
    its: tuple[ItsTable, ...] = ()
    device: tuple[HostDeviceTable, ...] = ()


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
