"""The revisions of "SMMUv3 Nested Stage Setup" (2018-2021) as far as MSIs differ in them.

docs/kernels.md names the patches that each rule was read in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vmm_msi.iommu.backend import MsiAllocator


@dataclass(frozen=True, slots=True)
class Revision:
    """What one revision does with the MSIs of nested IOMMU domains.

    :param number: the first posted revision that does so.
    :param allocator: a nested IOMMU domain takes its doorbell addresses from guest bindings, as
        this allocator does; KERNEL for a revision without them.
    :param device_handle: a binding belongs to the device that it was registered for.
    :param can_unbind: a binding can be withdrawn.
    :param unbinds_all: it withdraws every binding that covers the address, not the newest alone.
    :param one_stage1: an IOMMU domain that has a stage 1 refuses another one; else it replaces it.
    :param one_msi_domain: the devices of a nested IOMMU domain have one MSI domain.
    :param refuses_hw_msi: a device with a HW MSI region cannot be attached.
    :param compares_granules: a binding is not larger than a page of stage 2.
    :param reserves_regions: guest RAM in a reserved region is refused (VFIO in Linux 5.4).
    :param reports_failure: a caller learns that a doorbell could not be mapped; before, the
        message of such an MSI was all ones.
    """

    number: int
    allocator: MsiAllocator
    device_handle: bool = False
    can_unbind: bool = False
    unbinds_all: bool = False
    one_stage1: bool = False
    one_msi_domain: bool = False
    refuses_hw_msi: bool = False
    compares_granules: bool = False
    reserves_regions: bool = False
    reports_failure: bool = False

    @property
    def has_bindings(self) -> bool:
        """Whether user space can register guest bindings."""
        return self.allocator is not MsiAllocator.KERNEL


#: The kernel before the series.
BEFORE = Revision(0, MsiAllocator.KERNEL)

_V8 = Revision(
    8,
    MsiAllocator.V8,
    can_unbind=True,
    one_stage1=True,
    one_msi_domain=True,
    refuses_hw_msi=True,
    reports_failure=True,
)

#: Oldest first. Revisions 5 and 6 are as 4, 9 to 14 as 8.
REVISIONS: tuple[Revision, ...] = (
    BEFORE,
    Revision(1, MsiAllocator.V2),
    Revision(2, MsiAllocator.V2),
    Revision(3, MsiAllocator.V4, device_handle=True),
    Revision(4, MsiAllocator.V4, device_handle=True, can_unbind=True, unbinds_all=True),
    Revision(7, MsiAllocator.V8, can_unbind=True, unbinds_all=True, one_msi_domain=True),
    _V8,
    replace(
        _V8,
        number=15,
        allocator=MsiAllocator.V15,
        compares_granules=True,
        reserves_regions=True,
    ),
    Revision(
        16,
        MsiAllocator.KERNEL,
        one_stage1=True,
        refuses_hw_msi=True,
        reserves_regions=True,
        reports_failure=True,
    ),
)


def revision_numbered(number: int) -> Revision:
    """Return the revision with that number.

    :raise StopIteration: for the number of no revision in :data:`REVISIONS`.
    """
    return next(r for r in REVISIONS if r.number == number)


def revision_of(allocator: MsiAllocator) -> Revision | None:
    """Return the revision that an allocator of guest bindings is named after; None for another."""
    return next((r for r in REVISIONS if f"v{r.number}" == allocator.value), None)
