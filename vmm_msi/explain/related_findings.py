"""Which findings of the doctor are about the same thing as a text or a fault."""

from __future__ import annotations

#: By the id of a text.
OF_TEXT: dict[str, tuple[str, ...]] = {
    "smmu-stream-alias": ("shared-stream",),
    "smmu-no-translation": ("smmu-no-stage1", "smmu-no-stage2"),
    "smmuv2-context-fault": ("smmu-version-2",),
    "smmuv2-unknown-stream": ("smmu-version-2",),
    "direct-mapping-required": ("direct-region",),
    "direct-mapping-failed": ("direct-region",),
    "msi-not-isolated": ("unsafe-interrupts-needed",),
    "msi-isolation-overridden": ("unsafe-interrupts-on",),
    "locked-memory": ("memlock",),
    "virtual-functions-in-use": ("sr-iov-pf",),
    "its-absent": ("no-its",),
    "pci-no-memory": ("hotplug-bar-loss",),
    "libvirt-iommufd-host": ("no-dev-iommu", "kernel-no-iommufd"),
    "libvirt-iommufd-qemu": ("qemu-too-old",),
    "libvirt-fdgroup": ("fdgroup-needs-opener",),
    "libvirt-acpi-uefi": ("acpi-without-uefi",),
    "libvirt-iommu-acpi": ("no-acpi",),
    "libvirt-iommu-machine": ("guest-machine", "guest-arch"),
    "libvirt-iommu-qemu": ("qemu-too-old",),
    "libvirt-one-iommu": ("libvirt-too-old",),
    "libvirt-smmu-controller": ("misplaced-vsmmu",),
    "libvirt-in-use": ("held-by-domain",),
    "libvirt-unmanaged": ("host-driver",),
    "libvirt-no-device": ("device-missing", "kernel-no-vfio-cdev"),
    "libvirt-no-vfio": ("kernel-no-vfio-pci", "no-iommu-group"),
    "libvirt-memory-limit": ("memlock",),
    "qemu-vdevice": ("vsmmu-spans-smmus", "many-streams"),
    "qemu-viommu": ("smmu-not-nested", "smmu-no-s2fwb", "kernel-no-nested-smmu"),
    "qemu-hwpt": ("smmu-no-stage2", "vsmmu-spans-smmus"),
    "qemu-iommufd-missing": ("no-dev-iommu", "kernel-no-iommufd"),
    "qemu-vfio-cdev": ("kernel-no-vfio-cdev",),
    "qemu-bind": ("unsafe-interrupts-needed", "group-host-driver", "direct-region"),
    "qemu-attach-hwpt": ("partial-group", "guest-ram-in-msi-window"),
    "qemu-emulated-endpoint": ("emulated-behind-vsmmu",),
    "qemu-without-iommufd": ("hostdev-without-iommufd",),
    "qemu-cold-plug": ("empty-vsmmu",),
    "qemu-accel-machine": ("guest-kvm", "no-acpi"),
    "qemu-migration": ("no-migration",),
    "qemu-no-device": ("device-missing",),
    "qemu-no-group": ("no-iommu-group", "no-smmu"),
    "qemu-group-busy": ("held-by-domain",),
    "qemu-group-viable": ("group-host-driver",),
    "qemu-container": ("unsafe-interrupts-needed", "memlock"),
    "qemu-map-notifier": ("no-accel",),
    "qemu-group-open": ("held-by-domain",),
    "qemu-address-spaces": ("partial-group",),
    "qemu-map-failed": ("guest-ram-in-msi-window", "memlock"),
    "qemu-msi-enable": ("msi-window-full",),
    "qemu-smmu-place": ("misplaced-vsmmu",),
}

#: The guest does not map the SW MSI window.
WINDOW = ("no-acpi", "acpi-without-uefi", "no-accel")
#: A slot lies behind the window.
BEYOND = ("msi-window-full",)
#: The device has no SW MSI window.
NO_WINDOW = ("hw-msi-region",)
