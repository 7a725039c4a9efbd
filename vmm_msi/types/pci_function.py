"""A PCI function as the operating system of its host lists it."""

from __future__ import annotations

from dataclasses import dataclass

# Imported for real, not for type checkers alone: fields are read back from JSON by their types.
from vmm_msi.types.address import Pa, PciAddress, ReservedRegion  # noqa: TC001

# Drivers that leave the DMA of a device alone (driver_managed_dma in the kernel): the VFIO drivers
# all have vfio in their name, for instance mlx5_vfio_pci.
_HARMLESS = ("pci-stub", "pcieport")


def leaves_dma_alone(driver: str) -> bool:
    """Tell whether the kernel lets a function go to a guest's group while ``driver`` has it.

    Linux ``include/linux/pci.h``, driver_managed_dma.
    """
    return driver in _HARMLESS or "vfio" in driver


@dataclass(frozen=True, slots=True)
class PciFunction:
    """A PCI function of a host, as its kernel or its libvirt tells of it.

    What a source does not tell is None, or empty for what there are several of.

    :param iommu_group: number of its IOMMU group; None also where it is in none.
    :param members: all functions of that group, itself among them.
    :param numa_node: host NUMA node.
    :param driver: kernel driver that is bound to it.
    :param physical_function: the function it is an SR-IOV virtual function of.
    :param virtual_functions: the virtual functions that it has now.
    :param smmu: address of the registers of the SMMU that the kernel has it behind.
    :param class_code: base class, sub-class and interface, 24 bits.
    :param vectors: MSIs it can signal: MSI-X where it has that, else MSI; 0 where it has neither.
    :param ats: it has the ATS capability.
    :param pasid: it has the PASID capability.
    :param dma_rids: RequesterIDs under which its DMA arrives at the host bridge, in the order in
        which Linux finds them (``drivers/pci/search.c`` pci_for_each_dma_alias).
    :param msi_rid: RequesterID under which its MSIs arrive (``drivers/pci/msi/irqdomain.c``
        get_msi_id_cb).
    :param reserved: reserved regions of its IOMMU group.
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

    @property
    def is_bridge(self) -> bool | None:
        """Whether it is a bridge or a port (PCI Code and ID Assignment 1.7, class 06)."""
        return None if self.class_code is None else self.class_code >> 16 == 0x06

    @property
    def host_driver(self) -> str | None:
        """The driver with which the host itself uses it; None also for one of VFIO."""
        return None if self.driver is None or leaves_dma_alone(self.driver) else self.driver
