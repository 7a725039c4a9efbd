"""QEMU messages about an assigned device: its node, its MSIs, its BARs, its ROM and its reset.

Texts and source files are those of QEMU 11.1, unless a release is named.
"""

from __future__ import annotations

from vmm_msi.explain.explanation import Program
from vmm_msi.explain.known_text import Case, Text

TEXTS: tuple[Text, ...] = (
    Text(
        "qemu-vfio-cdev",
        Program.QEMU,
        (
            "failed to find vfio-dev/vfioX/dev",
            "(is your kernel config missing CONFIG_VFIO_DEVICE_CDEV?)",
        ),
        "the device has no node in /dev/vfio/devices, which iommufd requires",
        "hw/vfio/device.c, hw/vfio/iommufd.c iommufd_cdev_getfd",
        why="the kernel was built without CONFIG_VFIO_DEVICE_CDEV, or the device is not bound to "
        "vfio-pci",
        remedies=(
            "bind it to vfio-pci (virsh nodedev-detach), on a kernel with CONFIG_VFIO_DEVICE_CDEV",
        ),
        older=('/vfio-dev: failed to load "%s"',),
    ),
    Text(
        "qemu-no-device",
        Program.QEMU,
        ("no such host device",),
        "the host has no device at that address",
        "hw/vfio/pci.c",
        why="its address changed, or its driver or its virtual functions are missing",
        remedies=("look up its address with lspci -D",),
    ),
    Text(
        "qemu-vfio-cdev-open",
        Program.QEMU,
        ("Could not open '/dev/vfio/devices/vfio%d'",),
        "QEMU cannot open the device's own node, which iommufd requires",
        "hw/vfio/iommufd.c iommufd_cdev_getfd",
        cases={
            "Device or resource busy": Case(
                "another process has it open, such as another guest, or its group's node is open",
                findings=("held-by-domain",),
            ),
            "No such file": Case(
                "it is not bound to vfio-pci, or the kernel has no CONFIG_VFIO_DEVICE_CDEV",
                findings=("kernel-no-vfio-cdev", "host-driver"),
            ),
            "Permission denied": Case(
                "its user has no permission, or SELinux, AppArmor or the devices cgroup forbids it"
            ),
            "Operation not permitted": Case("the devices cgroup forbids it"),
        },
        remedies=("let libvirt open it: <iommufd enabled='yes'/> without fdgroup",),
    ),
    Text(
        "qemu-msi-enable",
        Program.QEMU,
        (
            "vfio: failed to enable vectors, %s",
            "vfio: Error: Failed to setup MSI fds: %s",
            "vfio: Error: Failed to enable MSI",
            "vfio: failed to enable MSI-X, %s",
            "VFIO_DEVICE_SET_IRQS failure",
            "vfio: msix_set_vector_notifiers failed",
        ),
        "the host's kernel refuses to enable the device's MSIs",
        "hw/vfio/pci.c vfio_msix_enable, vfio_msi_enable",
        cases={
            "No space left on device": Case(
                "the device is not attached to a translation, its doorbell has no address (the "
                "65th of one iommufd file descriptor, or its slot is mapped already), or its "
                "DeviceID has no free event in the ITS (ENOSPC for each; Linux "
                "msi_handle_pci_fail)"
            ),
            "No such device": Case(
                "the host has no LPI left, or no memory for the device's table in the ITS "
                "(ENODEV; Linux msi_create_device_irq_domain)"
            ),
            "Input/output error": Case(
                "the doorbell's address does not fit the device's 32-bit MSI capability (EIO; "
                "Linux msi_verify_entries)"
            ),
        },
        remedies=("look for the kernel's reason: dmesg | vmm-msi explain",),
    ),
    Text(
        "qemu-intx",
        Program.QEMU,
        ("eventfd signaling for interrupt INTX-%d: VFIO_DEVICE_SET_IRQS failure",),
        "the host's kernel refuses to enable the device's INTx",
        "hw/vfio/device.c vfio_device_irq_set_signaling",
        cases={
            "Device or resource busy": Case(
                "another device of the host uses the same interrupt line, and this one cannot mask "
                "its own (EBUSY; Linux vfio_intx_enable)"
            ),
        },
        remedies=(
            "unbind the other device of the line from its driver; /proc/interrupts shows the lines",
            "or move the device to another slot, whose line is not shared",
        ),
    ),
    Text(
        "qemu-capability",
        Program.QEMU,
        ("failed to add PCI capability 0x%x[0x%x]@0x%x: ",),
        "QEMU cannot show a capability of the device to the guest",
        "hw/vfio/pci.c vfio_add_std_cap",
        why="the device's description of it is wrong, such as an MSI-X table outside its BAR; or "
        "the device does not respond",
        remedies=("update the device's firmware; check it with lspci -vvv -s {device}",),
    ),
    Text(
        "qemu-device-error",
        Program.QEMU,
        ("Unrecoverable error detected. Please collect any data possible and then kill the guest",),
        "the device reported a PCIe error that cannot be recovered, and QEMU stopped the guest",
        "hw/vfio/pci.c vfio_err_notifier_handler",
        remedies=("look for AER lines of the device in the host's log",),
        older=("Unrecoverable error detected.",),
    ),
    Text(
        "qemu-fewer-msis",
        Program.QEMU,
        ("vfio: Error: Failed to enable %d MSI vectors, retry with %d",),
        "the host's kernel has only {1} of {0} MSIs for the device; QEMU tries again with these",
        "hw/vfio/pci.c vfio_msi_enable",
        why="MSI (not MSI-X) requires adjacent vectors, and the ITS or the host's driver has fewer",
        remedies=("nothing has to be fixed if the guest's driver works with fewer vectors",),
    ),
    Text(
        "qemu-reset",
        Program.QEMU,
        (
            "vfio: Cannot reset device %s, depends on group %d which is not owned.",
            "vfio: Cannot reset device %s, no available reset mechanism.",
            "vfio: Cannot reset device %s, depends on device %04x:%02x:%02x.%x which is not owned.",
            "vfio: hot reset info failed: %m",
        ),
        "QEMU cannot reset the device, so it keeps its state between guests",
        "hw/vfio/pci.c vfio_pci_hot_reset, hw/vfio/container-legacy.c",
        why="it has no function level reset, and a bus reset would reset other devices, too",
        remedies=(
            (
                "assign all functions of the device to one guest; a device without a reset may "
                "have to be power cycled between guests"
            ),
        ),
    ),
    Text(
        "qemu-power",
        Program.QEMU,
        ("vfio: Unable to power on device, stuck in D%d",),
        "the device does not respond: it stays in power state D{0}",
        "hw/vfio/pci.c vfio_pci_pre_reset",
        why="it lost power, or a reset failed",
        remedies=("power cycle the device; set vfio-pci.disable_idle_d3=1",),
    ),
    Text(
        "qemu-rom",
        Program.QEMU,
        (
            "vfio: Error getting ROM info",
            "vfio: Error reading device ROM",
            "vfio-pci: Device ROM size is zero at %s",
        ),
        "the guest does not get the device's option ROM; its driver rarely needs it",
        "hw/vfio/pci.c vfio_pci_load_rom",
        remedies=("nothing has to be fixed; <rom bar='off'/> avoids the attempt",),
        older=("vfio-pci: Cannot read device rom at %s",),
    ),
    Text(
        "qemu-fd",
        Program.QEMU,
        (
            "Use FD passing only with iommufd backend",
            "vfio device with fd=%d needs an id property",
        ),
        "a device that is passed to QEMU as a file descriptor requires iommufd and an id",
        "hw/vfio/device.c vfio_device_get_name",
        remedies=("use <iommufd enabled='yes'/>, or let QEMU open the device by its address",),
    ),
    Text(
        "qemu-bar-slow",
        Program.QEMU,
        ("Failed to mmap %s BAR %d. Performance may be slow",),
        "the guest accesses BAR {1} of the device by way of QEMU, which is slow",
        "hw/vfio/pci.c vfio_bar_register",
        why="VFIO cannot map it: another driver of the host has its memory, such as the firmware's "
        "framebuffer",
        remedies=("look for the kernel's reason: dmesg | vmm-msi explain",),
    ),
    Text(
        "qemu-no-error-recovery",
        Program.QEMU,
        ("Could not enable error recovery for the device",),
        "QEMU is not notified of PCIe errors of the device; the guest runs",
        "hw/vfio/pci.c vfio_populate_device",
        why="the kernel offers no error interrupt for it, such as for a virtual function",
        remedies=("nothing has to be fixed",),
    ),
)
