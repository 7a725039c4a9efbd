"""A PCI function as the operating system of its host lists it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# Imported at run time too: JSON readers build the fields from their types.
from vmm_msi.types.address import Pa, PciAddress, ReservedRegion  # noqa: TC001


class VfioEvidence(StrEnum):
    """What shows that a device is bound to VFIO, the strongest first."""

    #: sysfs has ``vfio-dev`` in the device's folder.
    VFIO_DEV = "vfio-dev"
    #: ``modules.alias`` gives the driver's module aliases that begin with ``vfio_pci:``.
    MODULES_ALIAS = "modules.alias"
    #: Only the name of the driver is known: it ends in ``vfio-pci``.
    DRIVER_NAME = "driver name"


@dataclass(frozen=True, slots=True)
class PciFunction:
    """A PCI function of a host, as the host's kernel or its libvirt reports it.

    A value that a source does not report is None, or empty if there can be several.

    :param iommu_group: number of its IOMMU group; None also if it is in no group.
    :param members: all functions of that group, itself included.
    :param numa_node: host NUMA node.
    :param driver: kernel driver that is bound to it.
    :param physical_function: the function it is an SR-IOV virtual function of.
    :param virtual_functions: the virtual functions that it has now.
    :param smmu: address of the registers of the SMMU that the kernel put it behind.
    :param class_code: base class, sub-class and interface, 24 bits.
    :param vectors: MSIs it can signal: MSI-X if it has that, else MSI; 0 if it has neither.
    :param ats: it has the ATS capability.
    :param pasid: it has the PASID capability.
    :param dma_rids: RequesterIDs with which its DMA reaches the host bridge, in the order in which
        Linux finds them (``drivers/pci/search.c`` pci_for_each_dma_alias).
    :param msi_rid: RequesterID with which its MSIs reach it (``drivers/pci/msi/irqdomain.c``
        get_msi_id_cb).
    :param reserved: reserved regions of its IOMMU group.
    :param vfio: how the kernel shows that it is bound to VFIO; None also if the source reports
        nothing but the driver's name (:func:`vmm_msi.host.pci.vfio_drivers.vfio_evidence`).
    """

    address: PciAddress
    iommu_group: int | None = None
    members: tuple[PciAddress, ...] = ()
    numa_node: int | None = None
    driver: str | None = None
    physical_function: PciAddress | None = None
    virtual_functions: tuple[PciAddress, ...] = ()
    smmu: Pa | None = None
    class_code: int | None = None
    vectors: int | None = None
    ats: bool | None = None
    pasid: bool | None = None
    dma_rids: tuple[int, ...] = ()
    msi_rid: int | None = None
    reserved: tuple[ReservedRegion, ...] | None = None
    vfio: VfioEvidence | None = None

    @property
    def is_bridge(self) -> bool | None:
        """Whether it is a bridge or a port (PCI Code and ID Assignment 1.7, class 06)."""
        return None if self.class_code is None else self.class_code >> 16 == 0x06
