"""The tables of a scenario file, as msgspec structs: what its keys are and of which type."""

from __future__ import annotations

from vmm_msi.tomlfile import Number, Table
from vmm_msi.types import BindOrder, ReservedKind


class SmmuTable(Table, frozen=True):
    """``[[host.smmu]]``."""

    id: Number
    base: Number | None = None
    nested: bool = True


class ItsTable(Table, frozen=True):
    """``[[host.its]]``."""

    id: Number
    base: Number


class ReservedTable(Table, frozen=True):
    """``[[host.device.reserved]]``."""

    base: Number
    size: Number
    type: ReservedKind


class HostDeviceTable(Table, frozen=True):
    """``[[host.device]]``; StreamID and DeviceID follow from the address unless given."""

    address: str
    smmu: Number
    its_group: tuple[Number, ...]
    iommu_group: Number
    vectors: Number = Number(1)
    streams: Number = Number(1)
    stream_id: Number | None = None
    device_id: Number | None = None
    reserved: tuple[ReservedTable, ...] = ()


class HostTable(Table, frozen=True):
    """``[host]``."""

    granule: str
    smmu: tuple[SmmuTable, ...] = ()
    its: tuple[ItsTable, ...] = ()
    device: tuple[HostDeviceTable, ...] = ()


class VitsTable(Table, frozen=True):
    """``[[guest.vits]]``."""

    id: Number
    base: Number


class GuestStage1Table(Table, frozen=True):
    """``[[guest.stage1]]``."""

    id: str
    granule: str = "4K"


class GuestDeviceTable(Table, frozen=True):
    """``[[guest.device]]``."""

    host: str
    stage1: str
    vits: Number
    giova: Number


class MemoryTable(Table, frozen=True):
    """``[[guest.memory]]``."""

    base: Number
    size: Number


class GuestTable(Table, frozen=True):
    """``[guest]``."""

    name: str = "guest"
    order: BindOrder = BindOrder.INTERLEAVED
    honours_rmr: bool = True
    vits: tuple[VitsTable, ...] = ()
    stage1: tuple[GuestStage1Table, ...] = ()
    device: tuple[GuestDeviceTable, ...] = ()
    memory: tuple[MemoryTable, ...] | None = None


class ScenarioFile(Table, frozen=True):
    """A whole file."""

    host: HostTable
    guest: GuestTable | None = None
