"""The simulator: an imitation of the kernel and the hardware.

It judges strategies, so it shares no code with them, and it depends neither on XML nor on libvirt.
From the inside out: :mod:`page_table`, :mod:`smmu` and :mod:`its` are the hardware;
:mod:`objects`, :mod:`iopt`, :mod:`core` and :mod:`iommufd` are Linux's iommufd and IOMMU core;
:mod:`kernel` has the operations that a VMM uses, for two kernels, :mod:`series` and :mod:`linux72`.
:mod:`backend` adds a guest's stage 1 tables and is a :class:`~vmm_msi.iommu.backend.Backend`;
:mod:`call_machine` is a :class:`~vmm_msi.iommu.call_sequence.Machine` of iommufd and the hardware.
"""

from vmm_msi.iommu.sim.backend import SimBackend

__all__ = ["SimBackend"]
