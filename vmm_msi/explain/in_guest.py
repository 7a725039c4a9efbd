"""What differs in a guest's own log: its firmware tables are QEMU's."""

from __future__ import annotations

from vmm_msi.explain.known_text import Case

FIRMWARE = "update the host's firmware, which provides the table; no strategy changes it"
#: What replaces a remedy in the guest.
REMEDIES = {
    FIRMWARE: "the table is QEMU's: change the guest's definition, or use another QEMU",
}

#: VFIO in a guest with an accelerated vSMMU.
DIRECT_WINDOW = Case(
    "QEMU gives each accelerated vSMMU an RMR for the SW MSI window, without permission to remap "
    "(hw/arm/virt-acpi-build.c build_iort_rmr_nodes), so the window is a region of type direct in "
    "the guest's reserved_regions (drivers/acpi/arm64/iort.c iort_get_rmrs); VFIO would remove "
    "that mapping for a moment",
    what="Linux in the guest refuses VFIO for this device (EINVAL): QEMU's RMR requires its MSI "
    "window mapped 1:1",
    remedies=(
        "use the device with a kernel driver of the guest (DPDK: one like mlx5)",
        (
            "for VFIO in the guest, such as DPDK or a nested guest: no strategy that QEMU applies "
            "permits it behind an accelerated vSMMU"
        ),
    ),
    findings=("rmr-direct",),
)

NO_ISOLATION = Case(
    "the device's MSIs do not pass a virtual ITS",
    what="VFIO in the guest refuses the device: its MSIs are not isolated, so it could raise any "
    "interrupt of the guest (EPERM)",
    remedies=(
        "give the guest an ITS: <gic version='3'/>, without its='off'",
        (
            "or set vfio_iommu_type1.allow_unsafe_interrupts=1 (iommufd.allow_unsafe_interrupts=1) "
            "in the guest"
        ),
    ),
    findings=("guest-gic",),
)
VSMMU_ERROR = Case(
    "QEMU emulates the registers of the vSMMU: the guest's driver gave it an invalid command or "
    "queue, or forwarding one to the host failed",
    remedies=("see QEMU's log: vmm-msi explain < /var/log/libvirt/qemu/{guest}.log",),
)
