"""What a backend on a real Linux kernel is made of: ioctls, VFIO devices, stage 1 tables, events.

From the inside out: :mod:`uapi` has the layouts, :mod:`calls` one method per ioctl of
/dev/iommu, :mod:`vfio` a PCI device in the hands of vfio-pci, :mod:`memory` and :mod:`stage1`
guest RAM with the tables a guest keeps in it, :mod:`events` what an SMMU reports.
"""
