"""The calls of iommufd's interface for guest MSI bindings, as values.

``linux/iommufd.h`` of the patched kernel: IOMMU_OPTION_MSI_BINDING picks the allocator of a nest
parent, IOMMU_VDEVICE_MSI binds a doorbell for a vDEVICE. :mod:`vmm_msi.iommu.nest_bindings` has the
rules.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum

from vmm_msi.iommu import rules
from vmm_msi.iommu.backend import MsiAllocator


class MsiBinding(IntEnum):
    """``enum iommu_msi_binding``: how the MSIs below a nest parent get their addresses."""

    #: The vDEVICE's own binding.
    DIRECT = 0
    #: A binding of the nest parent's list, as in revision 2 of the series.
    LIST = 1
    #: A binding of the vDEVICE's own list, as in revision 4.
    DEVICE = 2
    #: As LIST, for devices of one MSI domain, as in revision 8.
    LIST_ONE_DOMAIN = 3
    #: The same, which compares the page sizes of the stages, as in revision 15.
    LIST_ONE_GRANULE = 4

    @property
    def is_list(self) -> bool:
        """Whether the bindings belong to the nest parent."""
        return self not in {MsiBinding.DIRECT, MsiBinding.DEVICE}

    @property
    def one_msi_domain(self) -> bool:
        """Whether all devices below a nest parent have one MSI domain."""
        return self in {MsiBinding.LIST_ONE_DOMAIN, MsiBinding.LIST_ONE_GRANULE}


#: The allocator that a nest parent is given; DIRECT, the kernel's default, for the others.
BINDING_OF: dict[MsiAllocator, MsiBinding] = {
    MsiAllocator.V2: MsiBinding.LIST,
    MsiAllocator.V4: MsiBinding.DEVICE,
    MsiAllocator.V8: MsiBinding.LIST_ONE_DOMAIN,
    MsiAllocator.V15: MsiBinding.LIST_ONE_GRANULE,
}


class MsiOp(IntEnum):
    """``enum iommu_vdevice_msi_op``."""

    BIND = 0
    UNBIND = 1
    PREPARE = 2
    QUERY = 3


@dataclass(frozen=True, slots=True)
class MsiRequest:
    """Argument of IOMMU_VDEVICE_MSI, but for its size and the vDEVICE's id.

    :param op: a value of :class:`MsiOp`; the kernel refuses another.
    :param page_shift: BIND: log2 of the guest's stage 1 page.
    :param index: QUERY: the number of a binding of the vDEVICE, from 0.
    :param iova: BIND, UNBIND: gIOVA.
    :param gpa: BIND: gDB.
    """

    op: int
    page_shift: int = 0
    index: int = 0
    flags: int = 0
    reserved: int = 0
    iova: int = 0
    gpa: int = 0

    def check(self) -> None:
        """Check that the op exists and that the fields it does not use are 0.

        :raise BackendError: EOPNOTSUPP.
        """
        op = MsiOp(self.op) if self.op in MsiOp.__members__.values() else None
        unused = [self.flags, self.reserved]
        if op is not MsiOp.QUERY:
            unused.append(self.index)
        if op is not MsiOp.BIND:
            unused += [self.page_shift, self.gpa]
        if op in {MsiOp.PREPARE, MsiOp.QUERY}:
            unused.append(self.iova)
        if op is None or any(unused):
            raise rules.BINDING_FIELDS.refusal(
                errno.EOPNOTSUPP, f"IOMMU_VDEVICE_MSI: {self}: op unknown or unused field not 0"
            )


@dataclass(frozen=True, slots=True)
class BoundMsi:
    """A binding, as QUERY returns it.

    :param used: the device is programmed with it.
    """

    iova: int
    gpa: int
    page_shift: int
    used: bool

    def __str__(self) -> str:
        use = "used" if self.used else "unused"
        return f"{self.iova:#x} -> {self.gpa:#x}, shift {self.page_shift}, {use}"
