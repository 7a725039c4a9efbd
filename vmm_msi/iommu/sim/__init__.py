"""The model of the kernel and of the hardware.

It judges strategies, so it shares no code with them, and it knows nothing of XML or libvirt.
From the inside out: :mod:`pagetable`, :mod:`smmu` and :mod:`its` are the hardware,
:mod:`objects` and :mod:`kernel` in its two forms (:mod:`series`, :mod:`iommufd`) are Linux,
:mod:`guest` is what the guest's kernel does, and :mod:`backend` puts them behind the
:class:`~vmm_msi.iommu.backend.Backend` protocol.
"""

from vmm_msi.iommu.sim.backend import SimBackend

__all__ = ["SimBackend"]
