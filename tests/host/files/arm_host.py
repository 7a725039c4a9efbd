"""Write the files of an Arm host to a folder, with secrets that must not leave it."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import PurePath

from host.firmware.acpi_builder import iort, its_group, madt, root_complex, smmu_v3

PRIVATE = "S3cret"
RELEASE = "6.18.3-arm64"
SMMU_BASE = 0x2B400000
SMMU = "arm-smmu-v3.0.auto"
IOMMU = f"/sys/devices/platform/{SMMU}/iommu/smmu3.0x{SMMU_BASE:016x}"
PORT = "/sys/devices/pci0000:00/0000:00:01.0"
FEATURES = f"arm-smmu-v3 {SMMU}: oas 44-bit (features 0x008c9f05)"
LOG = (
    "ITS [mem 0x20000000-0x2001ffff]",
    FEATURES,
    "pci 0000:01:00.0: Adding to iommu group 7",
)
CONFIG = f"""\
#
# Linux/arm64 6.18.3 Kernel Configuration
#
CONFIG_IOMMUFD=m
CONFIG_ARM_SMMU_V3=y
# CONFIG_ARM_SMMU_V3_IOMMUFD is not set
CONFIG_NR_CPUS=512
CONFIG_PHYSICAL_START=0x1000000
CONFIG_LOCALVERSION="{PRIVATE}"
"""
ALIASES = f"""\
alias pci:v00008086d00001521sv*sd*bc*sc*i* {PRIVATE}
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
"""
LIMITS = f"""\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max locked memory         67108864             67108864             bytes
Max {PRIVATE}              1                    1                    files
"""


def config_space(*, bridge=False, words=PRIVATE.encode()):
    """Return a configuration space of 4096 bytes, with secrets in the parts to leave out."""
    space = bytearray((words * (4096 // len(words) + 1))[:4096])
    space[:64] = bytes(64)
    struct.pack_into("<HHHH", space, 0, 0x8086, 0x1521, 6, 0x10)
    space[0x0E] = 1 if bridge else 0x80
    struct.pack_into("<HH", space, 0x2C, 0x8086, 0x0001)
    space[0x34] = 0x40
    for at, following, kind, data in (
        (0x40, 0x50, 0x05, struct.pack("<HIIIII", 0x0186, 0xFEE00000, 0, 0x31, 0, 0)),
        (0x50, 0x60, 0x03, b""),  # VPD
        (0x60, 0xA0, 0x10, struct.pack("<H", 0x42 if bridge else 0x02) + bytes(56)),
        (0xA0, 0xB0, 0x11, struct.pack("<HII", 0x8007, 3, 0x2003)),
        (0xB0, 0x00, 0x09, b""),  # a maker's own
    ):
        space[at], space[at + 1] = kind, following
        space[at + 2 : at + 2 + len(data)] = data
    for at, following, kind, data in (
        (0x100, 0x140, 0x0001, b""),  # errors
        (0x140, 0x150, 0x0003, b""),  # serial number
        (0x150, 0x160, 0x000F, bytes(4)),
        (0x160, 0x000, 0x000D, b"\x5f\0\0\0"),
    ):
        struct.pack_into("<I", space, at, kind | 1 << 16 | following << 20)
        space[at + 4 : at + 4 + len(data)] = data
    return bytes(space)


class Host:
    """Files below ``folder``."""

    def __init__(self, folder):
        self.folder = folder

    def file(self, path, content):
        place = self.folder / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())

    def empty(self, path):
        (self.folder / path[1:]).mkdir(parents=True, exist_ok=True)

    def link(self, path, to):
        """Make a relative link, as in sysfs."""
        place = self.folder / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(to, PurePath(path).parent))

    def function(self, path, kind, **more):
        name = path.rsplit("/", 1)[1]
        for key, value in (
            ("class", kind),
            ("vendor", "0x8086"),
            ("device", "0x1521"),
            ("revision", "0x01"),
            ("subsystem_vendor", "0x8086"),
            ("subsystem_device", "0x0001"),
            ("numa_node", "0"),
            ("serial", PRIVATE),
        ):
            self.file(f"{path}/{key}", f"{value}\n")
        self.file(f"{path}/config", config_space(**more))
        self.link(f"/sys/bus/pci/devices/{name}", path)

    def endpoint(self, number):
        name = f"0000:{1 + number // 32:02x}:{number % 32:02x}.0"
        path = f"{PORT}/{name}"
        group = f"/sys/kernel/iommu_groups/{7 + number}"
        self.function(path, "0x020000")
        self.link(f"{path}/driver", "/sys/bus/pci/drivers/vfio-pci")
        self.file(f"{path}/vfio-dev/vfio{number}/dev", f"{PRIVATE}\n")
        self.link(f"{path}/iommu", IOMMU)
        self.link(f"{path}/iommu_group", group)
        self.file(f"{path}/msi_irqs/{40 + number}", "msix\n")
        self.link(f"{group}/devices/{name}", path)
        self.file(f"{group}/type", "DMA\n")
        self.file(
            f"{group}/reserved_regions",
            "0x0000000008000000 0x00000000080fffff msi\n",
        )


def arm_host(folder, devices=2):
    """Write an Arm host with ACPI, one SMMU and network devices behind a root port."""
    host = Host(folder)
    tables = (
        its_group(0),
        smmu_v3((0, 0xFFFF, 0x0, 0, 0), base=SMMU_BASE),
        root_complex((0, 0xFFFF, 0x0, 1, 0), segment=0),
    )
    host.file("/sys/firmware/acpi/tables/IORT", iort(*tables))
    host.file("/sys/firmware/acpi/tables/APIC", madt((0, 0x20000000)))
    host.file("/sys/firmware/acpi/tables/DSDT", PRIVATE)
    host.function(PORT, "0x060400", bridge=True)
    for number in range(devices):
        host.endpoint(number)
    host.empty(f"{IOMMU}/devices")
    host.link(f"/sys/class/iommu/{IOMMU.rsplit('/', 1)[1]}", IOMMU)
    host.file("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N\n")
    host.file("/sys/module/iommufd/parameters/allow_unsafe_interrupts", "Y\n")
    host.file("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N\n")
    host.file("/sys/module/wifi/parameters/passphrase", PRIVATE)
    host.empty("/sys/firmware/efi")
    host.file("/proc/sys/kernel/osrelease", f"{RELEASE}\n")
    host.file("/proc/sys/kernel/version", "#1 SMP Debian\n")
    host.file("/proc/sys/kernel/hostname", PRIVATE)
    host.file(
        "/proc/cmdline", f'root=UUID={PRIVATE} iommu.passthrough=1 x="a pci={PRIVATE}" quiet\n'
    )
    host.file("/proc/meminfo", f"MemTotal: 1024 kB\n{PRIVATE}: 1 kB\nHugePages_Total: 2\n")
    host.file(f"/boot/config-{RELEASE}", CONFIG)
    host.file(f"/usr/lib/modules/{RELEASE}/modules.alias", ALIASES)
    host.link("/lib", "/usr/lib")
    host.file("/dev/iommu", PRIVATE)
    host.file("/dev/vfio/vfio", "")
    host.file("/run/virtqemud.pid", "812")
    host.file("/proc/812/comm", "virtqemud\n")
    host.file("/proc/812/limits", LIMITS)
    host.file("/proc/812/environ", PRIVATE)
    host.file("/vmm-msi/page-size", "65536\n")
    host.file("/vmm-msi/kernel-log", "".join(f"{line}\n" for line in LOG))
    host.file(
        "/vmm-msi/software.json",
        '{"libvirt": "12.8.0", "qemu": "11.1.0", "driver": "QEMU", "said_by": "libvirt"}',
    )
    return host


def packed_config():
    return gzip.compress(CONFIG.encode())
