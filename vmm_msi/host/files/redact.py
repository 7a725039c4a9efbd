"""Reduce files to what may leave the host: everything that is not named here is left out.

That keeps passwords and keys on the kernel's command line, serial numbers and MAC addresses in
device trees and configuration spaces, and names of the host on the host.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Limit of a kernel configuration in bytes; Debian's has 300 KiB.
MAX_CONFIG = 4 << 20

#: The kernel arguments that are kept: Linux ``Documentation/admin-guide/kernel-parameters.txt`` and
#: the parameters of the drivers' modules. ``-`` and ``_`` are the same in a name
#: (``kernel/params.c`` parameq).
ARGUMENTS = frozenset(
    {
        "acpi",
        "arm_smmu.disable_bypass",
        "arm_smmu.force_stage",
        "arm_smmu_v3.disable_bypass",
        "arm_smmu_v3.disable_msipolling",
        "default_hugepagesz",
        "efi",
        "hugepages",
        "hugepagesz",
        "iommu",
        "iommu.forcedac",
        "iommu.passthrough",
        "iommu.strict",
        "irqchip.gicv2_force_probe",
        "irqchip.gicv3_nolpi",
        "irqchip.gicv3_pseudo_nmi",
        "kvm_arm.mode",
        "kvm_arm.vgic_v3_common_trap",
        "kvm_arm.vgic_v3_group0_trap",
        "kvm_arm.vgic_v3_group1_trap",
        "kvm_arm.vgic_v4_enable",
        "kvm_arm.wfe_trap_policy",
        "kvm_arm.wfi_trap_policy",
        "pci",
        "pci_stub.ids",
        "pcie_acs_override",
        "pcie_aspm",
        "pcie_port_pm",
        "pcie_ports",
        "vfio.enable_unsafe_noiommu_mode",
        "vfio_iommu_type1.allow_unsafe_interrupts",
        "vfio_iommu_type1.disable_hugepages",
        "vfio_iommu_type1.dma_entry_limit",
        "vfio_pci.disable_denylist",
        "vfio_pci.disable_idle_d3",
        "vfio_pci.enable_sriov",
        "vfio_pci.ids",
        "vfio_pci.nointxmask",
    }
)

#: Properties of a device tree that keep their values.
PROPERTIES = frozenset(
    b"""
    #address-cells #size-cells #interrupt-cells #iommu-cells #msi-cells compatible device_type
    model reg reg-names ranges dma-ranges dma-coherent status phandle linux,phandle bus-range
    linux,pci-domain iommus iommu-map iommu-map-mask iommu-addresses msi-controller msi-map
    msi-map-mask msi-parent interrupts interrupts-extended interrupt-parent interrupt-controller
    interrupt-names interrupt-map interrupt-map-mask ats-supported external-facing memory-region
    no-map reusable numa-node-id pasid-num-bits dma-can-stall socionext,synquacer-pre-its
    """.split()
)

_ARGUMENT = re.compile(r'(?:[^\s"]|"[^"]*(?:"|$))+')
_OPTION = re.compile(rb"^CONFIG_\w+=(?:[ym]|-?\d+|0x[0-9a-fA-F]+)$", re.MULTILINE)
_MEMORY = re.compile(rb"^(?:MemTotal|HugePages_\w+|Hugepagesize|Hugetlb): .*$", re.MULTILINE)
_LOCKED = re.compile(rb"^(?:Limit |Max locked memory ).*$", re.MULTILINE)


def command_line(data: bytes) -> bytes:
    """Return the kernel arguments named in :data:`ARGUMENTS`.

    A value may have blanks in quotes (Linux ``lib/cmdline.c`` next_arg); arguments after ``--`` are
    for init.
    """
    kept = []
    for argument in _ARGUMENT.findall(data.decode("utf-8", "replace")):
        if argument == "--":
            break
        if argument.partition("=")[0].replace("-", "_") in ARGUMENTS:
            kept.append(argument)
    return (" ".join(kept) + "\n").encode()


def kernel_options(data: bytes) -> bytes:
    """Return the options of a kernel configuration that are on or numbers; no strings."""
    return b"".join(line + b"\n" for line in _OPTION.findall(data))


def packed_kernel_options(data: bytes) -> bytes:
    """Reduce ``config.gz`` as :func:`kernel_options` reduces its content."""
    return gzip.compress(kernel_options(gunzip(data)), 9, mtime=0)


def vfio_aliases(data: bytes) -> bytes:
    """Return the lines of ``modules.alias`` about drivers of VFIO for PCI."""
    prefix = b"alias vfio_pci:"
    return b"".join(line for line in data.splitlines(keepends=True) if line.startswith(prefix))


def gunzip(data: bytes) -> bytes:
    """Decompress a kernel configuration.

    :raise ValueError: when it is damaged or larger than :data:`MAX_CONFIG` bytes.
    """
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        content = inflater.decompress(data, MAX_CONFIG)
    except zlib.error as failure:
        raise ValueError(f"cannot be decompressed: {failure}") from failure
    if not inflater.eof:
        raise ValueError(f"damaged or larger than {MAX_CONFIG} bytes")
    return content


def memory(data: bytes) -> bytes:
    """Return the lines of ``/proc/meminfo`` about the size of memory and of huge pages."""
    return b"".join(line + b"\n" for line in _MEMORY.findall(data))


def first_line(data: bytes) -> bytes:
    """Return the first line."""
    return data.partition(b"\n")[0] + b"\n"


def locked_memory(data: bytes) -> bytes:
    """Return the lines of ``/proc/PID/limits`` about locked memory."""
    return b"".join(line + b"\n" for line in _LOCKED.findall(data))


# Linux include/uapi/linux/pci_regs.h. Of other capabilities only the first bytes are kept, which
# link the list: they may have serial numbers (Device Serial Number, VPD) or anything (those of
# vendors), and reading some of them makes a device fail.
_HEADER = 64
_CAPABILITIES = {
    0x01: 8,  # power management
    0x0D: 8,  # subsystem of a bridge
    0x11: 12,  # MSI-X
    0x13: 6,  # advanced features
}
_MSI, _EXPRESS = 0x05, 0x10
_EXTENDED_CAPABILITIES = {
    0x0D: 8,  # ACS
    0x0E: 8,  # ARI
    0x0F: 8,  # ATS
    0x10: 64,  # SR-IOV
    0x13: 16,  # PRI
    0x1B: 8,  # PASID
}
_EXTENDED = 0x100
_END = 0x1000


def config_space(read: Callable[[int, int], bytes]) -> bytes:
    """Return a function's configuration space, with zeros for the parts that are not read.

    :param read: returns ``size`` bytes from ``offset`` on, less if no more can be read.
    :return: as many bytes as can be read.
    """
    header = read(0, _HEADER)
    if len(header) < _HEADER or not header[6] & 0x10:
        return header
    space = bytearray(_END)
    space[:_HEADER] = header
    if not _capabilities(read, space):
        return header
    if not _extended_capabilities(read, space):
        return bytes(space[:_EXTENDED])
    return bytes(space)


def _capabilities(read: Callable[[int, int], bytes], space: bytearray) -> bool:
    """Read the list of capabilities and return whether that succeeded."""
    seen = set()
    at = space[0x34] & 0xFC
    while at >= _HEADER and at not in seen:
        seen.add(at)
        head = read(at, 4)
        if len(head) < 4:
            return False
        flags = head[2] | head[3] << 8
        size = _CAPABILITIES.get(head[0], 2)
        if head[0] == _MSI:  # with a 64-bit address, with a mask of each vector
            size = 10 + (4 if flags & 0x80 else 0) + (10 if flags & 0x100 else 0)
        elif head[0] == _EXPRESS:
            size = 60 if flags & 0xF > 1 else 20
        size = min(size, _EXTENDED - at)
        space[at : at + 2] = head[:2]
        body = read(at, size)
        space[at : at + len(body)] = body
        at = head[1] & 0xFC
    return True


def _extended_capabilities(read: Callable[[int, int], bytes], space: bytearray) -> bool:
    """Read the list of extended capabilities and return whether the function has one."""
    seen = set()
    at = _EXTENDED
    while at >= _EXTENDED and at not in seen:
        seen.add(at)
        head = read(at, 4)
        if len(head) < 4:
            return len(seen) > 1
        entry = int.from_bytes(head, "little")
        size = _EXTENDED_CAPABILITIES.get(entry & 0xFFFF, 4)
        body = read(at, min(size, _END - at))
        space[at : at + len(body)] = body
        at = entry >> 20 & 0xFFC
    return True


_FDT_MAGIC = 0xD00DFEED
_BEGIN, _END_NODE, _PROPERTY, _NOP, _LAST = 1, 2, 3, 4, 9
_FDT_HEADER = struct.Struct(">10I")


def device_tree(data: bytes) -> bytes:
    """Return a device tree with zeros for the values of properties not in :data:`PROPERTIES`.

    The format is that of the Devicetree Specification 0.4, chapter 5.

    :raise ValueError: when it is malformed.
    """
    if len(data) < _FDT_HEADER.size:
        raise ValueError("not a device tree")
    magic, total, structure, strings, *_rest = _FDT_HEADER.unpack_from(data)
    if magic != _FDT_MAGIC or not structure <= total <= len(data):
        raise ValueError("not a device tree")
    blob = bytearray(data[:total])
    at = structure
    while True:
        if at + 4 > total:
            raise ValueError("the device tree is truncated")
        token = int.from_bytes(blob[at : at + 4], "big")
        at += 4
        if token == _LAST:
            return bytes(blob)
        if token == _BEGIN:
            at = blob.find(b"\0", at, total) + 1
            if at == 0:
                raise ValueError("the device tree is truncated")
        elif token == _PROPERTY:
            size = int.from_bytes(blob[at : at + 4], "big")
            name = strings + int.from_bytes(blob[at + 4 : at + 8], "big")
            at += 8
            if at + size > total:
                raise ValueError("the device tree is truncated")
            if bytes(blob[name : blob.find(b"\0", name, total)]) not in PROPERTIES:
                blob[at : at + size] = bytes(size)
            at += size
        elif token not in {_END_NODE, _NOP}:
            raise ValueError(f"the device tree has an unknown token {token:#x}")
        at = structure + (at - structure + 3) // 4 * 4
