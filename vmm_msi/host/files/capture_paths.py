"""Where a capture has what it made itself, and is no file of the host."""

MADE = "/vmm-msi"
#: A :class:`~vmm_msi.host.files.manifest.Manifest`.
MANIFEST = f"{MADE}/manifest.json"
#: The kernel's page size in bytes, decimal.
PAGE_SIZE = f"{MADE}/page-size"
#: Lines of the kernel's log, as ``vmm_msi.host.files.kernel_log`` picks them.
KERNEL_LOG = f"{MADE}/kernel-log"
#: Which libvirt and QEMU are there.
SOFTWARE = f"{MADE}/software.json"
