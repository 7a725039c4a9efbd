"""The model of the kernel and of the hardware.

It judges strategies, so it shares no code with them, and it knows nothing of XML or libvirt.
From the inside out: :mod:`pagetable`, :mod:`smmu` and :mod:`its` are the hardware;
:mod:`objects`, :mod:`iopt`, :mod:`core` and :mod:`context` are Linux's iommufd and IOMMU core, and
:mod:`kernel` in its two forms (:mod:`series`, :mod:`iommufd`) is what a VMM makes of a kernel.
:mod:`backend` puts that, with a guest's stage 1 tables, behind the
:class:`~vmm_msi.iommu.backend.Backend` protocol, and :mod:`machine` puts iommufd and the hardware
behind :class:`~vmm_msi.iommu.call_sequence.Machine`.
"""

from vmm_msi.iommu.sim.backend import SimBackend

__all__ = ["SimBackend"]
