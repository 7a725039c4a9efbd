"""A guest: its virtual ITSes, stage 1 tables and devices; and a scenario, a guest on a host."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from vmm_msi.types.address import Granule, Iova, Ipa, PciAddress
from vmm_msi.types.host import ITS_TRANSLATER_PAGE_OFFSET, HostTopology

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Base of the ITS of QEMU's virt board (QEMU ``hw/arm/virt.c`` base_memmap, VIRT_GIC_ITS).
VIRT_ITS = Ipa(0x0808_0000)
#: Where Linux maps the first doorbell of a device: its IOVA allocator allocates from the top of the
#: 32-bit space down (``drivers/iommu/dma-iommu.c`` iommu_dma_alloc_iova), here one 4 KiB page.
#: A guest that maps other DMA before the MSI gets a lower one; a guest with an RMR uses none.
FIRST_GIOVA = Iova(0xFFFF_F000)


@dataclass(frozen=True, slots=True)
class Vits:
    """A virtual ITS; its doorbell page (gDB) is an IPA."""

    id: int
    base: Ipa

    @property
    def gdb(self) -> Ipa:
        """The page that holds the virtual GITS_TRANSLATER."""
        return self.base.offset(ITS_TRANSLATER_PAGE_OFFSET)


class Stage1Mode(StrEnum):
    """What a guest's stream table entries make of stage 1: ``STE.Config`` and ``STE.S1DSS``."""

    #: The guest's tables translate.
    TRANSLATE = "translate"
    #: Nothing translates: an identity domain (``iommu.passthrough=1``), or an SMMU that is off.
    BYPASS = "bypass"
    #: The tables translate accesses with a PASID alone, and an MSI has none: an identity domain of
    #: a device that uses PASIDs (Linux ``arm_smmu_attach_dev_ste``).
    S1DSS_BYPASS = "s1dss-bypass"


@dataclass(frozen=True, slots=True)
class Stage1:
    """One stage 1 that the guest owns: a translation table with a granule."""

    id: str
    granule: Granule = Granule.K4
    config: Stage1Mode = Stage1Mode.TRANSLATE

    @property
    def translates(self) -> bool:
        """Whether it translates the address of an MSI."""
        return self.config is Stage1Mode.TRANSLATE


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
    :param giova: the address the guest's stage 1 maps to that vITS's doorbell page; where it does
        not translate, the address that the guest takes for it.
    :param vfio: VFIO in the guest uses it, for DPDK or a nested guest.
    """

    host: PciAddress
    stage1: str
    vits: int
    giova: Iova
    vfio: bool = False


def own_stage1(host: PciAddress) -> str:
    """Return the id of the stage 1 that a device has if none is named for it."""
    return f"s1-{host}"


class BindOrder(StrEnum):
    """Order of the calls for several devices."""

    #: attach, bind and prepare one device, then the next: what a VMM does.
    INTERLEAVED = "interleaved"
    #: attach and bind all devices, then prepare all.
    BATCHED = "batched"


class ContainerPer(StrEnum):
    """What a VMM opens a VFIO container for, in a kernel without iommufd."""

    #: Each device, or IOMMU group: QEMU with a virtual IOMMU.
    DEVICE = "device"
    #: Each stage 1 of the guest.
    STAGE1 = "stage1"
    #: The guest: all its devices.
    GUEST = "guest"


@dataclass(frozen=True)
class GuestDomain:
    """A guest (libvirt's domain): its virtual ITSes, stage 1 tables, devices and behaviour.

    :param memory: its RAM; QEMU's virt board puts it at 1 GiB.
    :param honours_rmr: it maps the ranges of an IORT RMR node 1:1 at stage 1.
    :param containers: what its VMM opens a VFIO container for.
    """

    name: str
    vits: tuple[Vits, ...]
    stage1: tuple[Stage1, ...]
    devices: tuple[GuestDevice, ...]
    order: BindOrder = BindOrder.INTERLEAVED
    honours_rmr: bool = True
    memory: tuple[MemoryRange, ...] = (MemoryRange(Ipa(0x4000_0000), 0x4000_0000),)
    containers: ContainerPer = ContainerPer.DEVICE

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
