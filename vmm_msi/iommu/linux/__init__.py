"""Parts of the backend on a real Linux kernel: ioctls, VFIO devices, stage 1 tables, events.

From the inside out: :mod:`uapi` has the structures, :mod:`iommufd` one method per ioctl of
/dev/iommu, :mod:`event_queue` the events for guests, :mod:`vfio` a PCI device bound to VFIO,
:mod:`guest_ram` and :mod:`stage1` guest RAM with a guest's tables in it, :mod:`kmsg` the events in
the kernel's log, :mod:`raise_msi` a device's MSI and where it arrives. :mod:`backend` is a
:class:`~vmm_msi.iommu.backend.Backend`, :mod:`call_machine` a
:class:`~vmm_msi.iommu.call_sequence.Machine`.
"""
