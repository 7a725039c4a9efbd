"""Linux log messages about PCI devices, their interrupts, and security modules.

Source files are those of Linux 7.2, below ``drivers/`` where no other folder is named.
"""

from __future__ import annotations

from vmm_msi.explain.explanation import Program
from vmm_msi.explain.known_text import Case, Text

#: Nodes of VFIO and iommufd, as records of SELinux name them.
_NODES = (
    'path="/dev/iommu"',
    'path="/dev/vfio/',
    'name="iommu" dev="devtmpfs"',
    'name="vfio" dev="devtmpfs"',
    'name="noiommu-',
    ":object_r:vfio_device_t:",
)

TEXTS: tuple[Text, ...] = (
    Text(
        "pci-no-memory",
        Program.KERNEL,
        ("not claimed; can't enable device", "not assigned; can't enable device"),
        "a device cannot be enabled because a BAR has no memory",
        "pci/setup-res.c pci_enable_resources",
        why="in a guest: a device was hot-plugged behind an expander bus without spare memory, and "
        "Linux took the memory of its neighbours",
        remedies=(
            (
                "reserve memory in advance: vmm-msi attach {guest} … --spare-ports N "
                "--spare-memory MIB"
            ),
        ),
        older=(
            "can't enable device: BAR %d %pR not claimed",
            "can't enable device: BAR %d %pR not assigned",
        ),
    ),
    Text(
        "pci-no-space",
        Program.KERNEL,
        (
            "bridge window %pR: can't assign; no space",
            "bridge window %pR: failed to assign",
            "%pR: can't assign; no space",
            "%pR: failed to assign",
            "can't claim; no compatible bridge window",
            "can't claim; no address assigned",
            "can't claim; address conflict with %s %pR",
        ),
        "a BAR, or a window of a bridge, has no memory",
        "pci/setup-res.c pci_assign_resource, pci_claim_resource",
        cases={
            "[io": Case(
                "it has no I/O ports, which Arm hosts and most drivers do not need",
                remedies=("nothing has to be fixed if the device works",),
                findings=(),
            ),
            "bridge window": Case(
                "a window of a bridge is larger than what is left above it; devices below it may "
                "have less memory than they ask for, or none to spare for hot-plug"
            ),
        },
        in_guest={
            "[io": Case(
                "it has no I/O ports, which guests on Arm do not need",
                remedies=("nothing has to be fixed if the device works",),
                findings=(),
            ),
            "": Case(
                "the window of its root port or expander bus is too small for its BARs. Linux may "
                "try again, so look for 'assigned' below",
                remedies=(
                    "reserve more for hot-plug: vmm-msi attach … --spare-memory MIB",
                    "or start the guest with the device, so that the firmware sizes the windows",
                ),
            ),
        },
        why="the memory above it is too small for its BARs: the window of the host bridge, of the "
        "root port or of the expander bus. Linux may try again, so look for 'assigned' below",
        remedies=(
            (
                "in a guest: reserve more: vmm-msi attach {guest} … --spare-memory MIB, or a "
                "larger <pcihole64>"
            ),
            (
                "on a host: enable above 4G decoding and resizable BARs in the firmware; boot with "
                "pci=realloc"
            ),
        ),
        older=("BAR %d: no space for %pR", "BAR %d: failed to assign %pR"),
    ),
    Text(
        "pci-vf-bus",
        Program.KERNEL,
        ("can't enable %d VFs (bus %02x out of range of %pR)",),
        "the device does not get {0} virtual functions: their bus numbers are not reserved",
        "pci/iov.c sriov_enable",
        why="the firmware gave the port above the device too few buses",
        remedies=("boot with pci=realloc,assign-busses, or use fewer virtual functions",),
    ),
    Text(
        "pci-bar-in-use",
        Program.KERNEL,
        ("BAR %d: can't reserve %pR",),
        "a driver cannot have BAR {0}: another driver of the host has its memory",
        "pci/pci.c __pci_request_region",
        why="usually the firmware's framebuffer (simple-framebuffer, efifb) is in the BAR of a "
        "GPU; VFIO then cannot map it into the guest",
        remedies=(
            (
                "boot the host with video=efifb:off or initcall_blacklist=sysfb_init, or remove "
                "the framebuffer's driver from the device before the guest starts"
            ),
        ),
    ),
    Text(
        "pci-inaccessible",
        Program.KERNEL,
        (
            "Unable to change power state from %s to %s, device inaccessible",
            "Unable to change power state from %s to D0, device inaccessible",
            "not ready %dms after %s; giving up",
            "Refused to change power state from %s to %s",
        ),
        "the device does not respond",
        "pci/pci.c pci_set_low_power_state, pci_power_up, pci_dev_wait",
        why="it lost power, its link is down, or a reset failed",
        remedies=("power cycle the device; keep it out of D3: vfio-pci.disable_idle_d3=1",),
        older=("Refused to change power state, currently in D%d",),
    ),
    Text(
        "lost-interrupt",
        Program.KERNEL,
        ("I/O tag %d (%04x) QID %d timeout, completion polled",),
        "an NVMe device completed a request, but its interrupt did not arrive: its MSIs are lost",
        "nvme/host/pci.c nvme_timeout",
        in_guest={
            "": Case(
                "DMA works and the doorbell does not: the guest's stage 1, or the host's stage 2, "
                "does not map it, or the MSI goes to another ITS",
                remedies=(
                    "look for SMMU events in the guest: dmesg | vmm-msi explain --in-guest",
                    "and on the host, with the guest: dmesg | vmm-msi explain --domain",
                ),
            ),
        },
        why="DMA works and the doorbell does not: nothing maps it in stage 1 or stage 2, it maps "
        "to another ITS, or the ITS does not know the DeviceID. For a drive of the host itself, "
        "its firmware or its power management may lose MSIs, too",
        remedies=(
            (
                "look for SMMU events at the time: dmesg | vmm-msi explain, on the host and in the "
                "guest"
            ),
            (
                "check whether interrupts are counted: vmm-msi status {guest}; grep nvme "
                "/proc/interrupts"
            ),
        ),
        strategies=True,
        older=("I/O %d QID %d timeout, completion polled",),
    ),
    Text(
        "irq-nobody-cared",
        Program.KERNEL,
        ("irq %d: nobody cared (try booting with the",),
        "Linux disabled interrupt {0}: no driver handled it 99,900 of 100,000 times",
        "kernel/irq/spurious.c __report_bad_irq",
        why="a level interrupt (INTx) stays raised: a device shares it that was assigned, or whose "
        "driver is gone, or its mask bit is broken. An MSI is not affected",
        remedies=(
            (
                "have the device use MSIs; for INTx, load vfio-pci with nointxmask=1, which "
                "requires an interrupt of its own"
            ),
        ),
    ),
    Text(
        "selinux-denied",
        Program.AUDIT,
        tuple(f"avc: denied {{ %s }} for %s{node}" for node in _NODES),
        "SELinux denies a process the access to a node of VFIO or iommufd: {0}",
        "security/selinux/avc.c avc_audit_pre_callback",
        why="the process has another label than libvirt's guests have, or the node was not "
        "labelled: a VMM without libvirt, a container, or a node that was passed in",
        remedies=(
            "let libvirt start the guest and open the node: <iommufd enabled='yes'/>",
            "otherwise allow it in a policy module: ausearch -m avc -ts recent | audit2allow",
        ),
    ),
    Text(
        "apparmor-denied",
        Program.AUDIT,
        tuple(f'apparmor="DENIED" %s name="{node}' for node in ("/dev/iommu", "/dev/vfio")),
        "AppArmor denies a process the access to a node of VFIO or iommufd",
        "security/apparmor/audit.c audit_pre, file.c file_audit_cb",
        why="its profile has no rule for the node: libvirt writes rules only for what its release "
        "knows in the domain XML, and a VMM without libvirt has a profile of its own",
        remedies=(
            (
                "use a libvirt that supports iommufd, or add the node to the profile: "
                "/etc/apparmor.d/local/abstractions/libvirt-qemu"
            ),
        ),
    ),
)
