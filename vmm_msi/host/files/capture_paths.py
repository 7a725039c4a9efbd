"""The paths of the files that a capture adds to the host's own, and of one it has in part."""

ADDED = "/vmm-msi"
#: A :class:`~vmm_msi.host.files.manifest.Manifest`.
MANIFEST = f"{ADDED}/manifest.json"
#: The kernel's page size in bytes, decimal.
PAGE_SIZE = f"{ADDED}/page-size"
#: Lines of the kernel's log, as ``vmm_msi.host.files.kernel_log`` selects them.
KERNEL_LOG = f"{ADDED}/kernel-log"
#: Releases of libvirt and QEMU.
SOFTWARE = f"{ADDED}/software.json"

#: The kernel's file of guest MSI bindings (:mod:`vmm_msi.host.msi_bindings`).
MSI_BINDINGS = "/sys/kernel/debug/iommufd/msi_bindings"
