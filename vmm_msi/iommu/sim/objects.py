"""Objects and groups of the simulated /dev/iommu and IOMMU core.

Linux ``include/uapi/linux/iommufd.h``, ``drivers/iommu/iommufd/iommufd_private.h`` and
``drivers/iommu/iommu.c``. :mod:`~vmm_msi.iommu.sim.core` and :mod:`~vmm_msi.iommu.sim.iommufd`
have the rules.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from vmm_msi.types import ReservedKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_msi.errors import BackendError, Rule
    from vmm_msi.iommu.nest_bindings import NestBindings
    from vmm_msi.iommu.sim.iopt import FilledTable, IoPageTable
    from vmm_msi.iommu.sim.page_table import PageTable
    from vmm_msi.iommu.sim.smmu import Stage1Config
    from vmm_msi.types import HostDevice, Iova, Pa, PciAddress, ReservedRegion


class FileContext(Protocol):
    """An open /dev/iommu, as groups and the IOMMU core see it: ``struct iommufd_ctx``."""

    def sw_msi(self, group: FdGroup, device: HostDevice, doorbell: Pa) -> Iova:
        """Return the address by which a device of an attached group reaches a doorbell."""
        ...


@dataclass(eq=False)
class Object:
    """Base of all objects: an id, and the number of objects and devices that refer to it."""

    id: int
    users: int = field(default=0, kw_only=True)


@dataclass(eq=False)
class Ioas(Object):
    """An I/O address space: the mappings of user space, and the reserved regions.

    :param hwpts: the tables filled from it, oldest first.
    """

    iopt: IoPageTable
    hwpts: list[PagingHwpt] = field(default_factory=list)


@dataclass(eq=False)
class PagingHwpt(Object):
    """A table of one SMMU, filled from an IOAS.

    :param nest_parent: it is a stage 2 that stage 1 tables can be nested on; otherwise the kernel
        makes it a stage 1 of its own.
    :param auto: it was allocated by attaching a device to the IOAS and is destroyed with the last
        one.
    :param slots: addresses of the SW MSI slots that are mapped in it.
    :param bindings: the guest MSI bindings of a nest parent, in a kernel with the interface.
    """

    ioas: Ioas
    smmu: int
    filled: FilledTable
    nest_parent: bool
    auto: bool = False
    slots: set[Iova] = field(default_factory=set)
    bindings: NestBindings | None = None

    @property
    def table(self) -> PageTable:
        """The page table."""
        return self.filled.table

    @property
    def paging(self) -> PagingHwpt:
        """The table that MSI pages are mapped in: itself (``find_hwpt_paging``)."""
        return self


@dataclass(eq=False)
class Viommu(Object):
    """A virtual SMMU, on the stage 2 of a physical one.

    :param vdevices: its devices, by virtual StreamID.
    :param by_address: the same, by PCI address.
    """

    hwpt: PagingHwpt
    vdevices: dict[int, Vdevice] = field(default_factory=dict)
    by_address: dict[PciAddress, Vdevice] = field(default_factory=dict)


@dataclass(eq=False)
class Vdevice(Object):
    """A device as the guest's SMMU knows it, by virtual StreamID."""

    viommu: Viommu
    device: IommufdDevice
    virt_id: int


class SteConfig(StrEnum):
    """STE.Config of a guest's stream table entry, as the nesting interface takes it."""

    TRANSLATE = "translate"
    BYPASS = "bypass"
    ABORT = "abort"


class GuestSte(NamedTuple):
    """A guest's stream table entry.

    :param config: None for an entry with bits that a guest may not set.
    :param stage1: the context descriptor, with TRANSLATE.
    """

    config: SteConfig | None
    stage1: Stage1Config | None = None


@dataclass(eq=False)
class NestedHwpt(Object):
    """A guest's stream table entry: a stage 1 on a vIOMMU's stage 2."""

    viommu: Viommu
    config: SteConfig
    stage1: Stage1Config | None

    @property
    def paging(self) -> PagingHwpt:
        """The table that MSI pages are mapped in: the stage 2 (``find_hwpt_paging``)."""
        return self.viommu.hwpt


Hwpt: TypeAlias = PagingHwpt | NestedHwpt


@dataclass(eq=False)
class FdGroup:
    """An IOMMU group within a file descriptor: ``struct iommufd_group``.

    It exists while a device of the group is bound.

    :param devices: its bound devices.
    :param attached: its attached devices, by id.
    :param sw_msi_start: base of the software MSI window, once a device was attached.
    :param required: slots that its devices have used, by address; installed in every table that
        the group is attached to.
    """

    core: CoreGroup
    context: FileContext
    devices: dict[PciAddress, IommufdDevice] = field(default_factory=dict)
    hwpt: Hwpt | None = None
    attached: dict[int, IommufdDevice] = field(default_factory=dict)
    sw_msi_start: int | None = None
    required: dict[Iova, Pa] = field(default_factory=dict)


@dataclass(eq=False)
class IommufdDevice(Object):
    """A device that is bound to the file descriptor.

    :param window: the software MSI window that was set for it, in place of its driver's.
    """

    host: HostDevice
    group: FdGroup
    vdevice: Vdevice | None = None
    window: ReservedRegion | None = None

    @property
    def enforced_regions(self) -> list[ReservedRegion]:
        """The reserved regions that an IOAS keeps free of mappings."""
        relaxable, sw_msi = ReservedKind.DIRECT_RELAXABLE, ReservedKind.SW_MSI
        regions = [region for region in self.host.reserved if region.kind is not relaxable]
        if self.window is None:
            return regions
        return [self.window if region.kind is sw_msi else region for region in regions]


def another_smmu(device: IommufdDevice, hwpt: PagingHwpt, rule: Rule) -> BackendError:
    """Return the refusal of a device behind another SMMU than the one of a HWPT."""
    return rule.refusal(
        errno.EINVAL,
        f"{device.host.address}: is behind SMMU {device.host.smmu}, the S2 belongs to SMMU "
        f"{hwpt.smmu}; use one nest parent per physical SMMU",
    )


class CoreDomain(Enum):
    """The IOMMU domains without a HWPT."""

    #: The domain of the kernel's own drivers.
    DEFAULT = "default"
    #: Everything is aborted: ``arm_smmu_blocked_domain``.
    BLOCKED = "blocked"


IommuDomain: TypeAlias = CoreDomain | PagingHwpt | NestedHwpt


class Msis(NamedTuple):
    """The MSIs of a device that are set up: its ``struct msi_desc``.

    :param doorbell: of the device's ITS.
    :param write: writes an address into the device.
    """

    doorbell: Pa
    write: Callable[[Iova], None]


@dataclass(eq=False)
class Master:
    """A device as the SMMU driver knows it: ``struct arm_smmu_master``.

    :param domain: the IOMMU domain that its stream table entry was written for.
    :param vmaster: the vIOMMU that its stage 1 events are reported to, and its StreamID there.
    :param cached: the SMMU has its configuration in its cache.
    :param msis: None as long as its MSIs are not enabled.
    """

    host: HostDevice
    domain: IommuDomain = CoreDomain.DEFAULT
    vmaster: tuple[Viommu, int] | None = None
    cached: bool = False
    msis: Msis | None = None


@dataclass(eq=False)
class CoreGroup:
    """An IOMMU group: ``struct iommu_group``.

    :param owner: the file descriptor that owns its DMA.
    :param owners: number of devices that claimed it.
    :param handle: the group within the file descriptor, while a HWPT is attached.
    """

    number: int
    masters: list[Master] = field(default_factory=list)
    domain: IommuDomain = CoreDomain.DEFAULT
    owner: FileContext | None = None
    owners: int = 0
    handle: FdGroup | None = None
