"""Mappings that a VMM could not make in stage 2: what the address is, and what the errno says.

Memory that a VMM maps for assigned devices is guest RAM, or a BAR of one of them, which only its
peers need. The errno alone does not say what to change: EINVAL for RAM is a reserved region, for a
BAR it is a window beyond the IOMMU's width, which can stay as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING

from vmm_msi.explain import errno_words
from vmm_msi.explain.known_text import Case
from vmm_msi.types import SW_MSI_WINDOW, Ipa, PciAddress

if TYPE_CHECKING:
    from vmm_msi.explain.log_context import LogContext
    from vmm_msi.types import MemoryRange, ReservedRegion

_HEX = r"0x([0-9a-fA-F]{1,16})"
#: An address with a size, or with the last address, as VMMs print it.
_SIZED = re.compile(
    rf"dma_map\([^,\s]{{1,20}}, ?{_HEX}, ?{_HEX}[,)]|iova:? ?{_HEX},? size:? ?{_HEX}"
)
_RANGE = re.compile(rf"{_HEX}(?:\.\.\.?|-|\u2013){_HEX}")
#: PCI addresses that a line may name, and how many of them are looked up.
_DEVICE = re.compile(r"\b([0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7])\b")
_DEVICES = 4
#: QEMU's name of the memory region, before the reason.
_REGION = re.compile(r"\bRegion ([^\n]{1,80}?): ?(?=\w*dma_map|IOMMU)")
_BAR_NAME = re.compile(r"\bBAR \d|\bmmaps\[|\brom\b")
_RAM_NAME = re.compile(r"\bram|\bmem|\bdimm|\bnode|flash", re.IGNORECASE)
#: Words of messages about BARs only.
_BAR_WORDS = ("peer-to-peer", "pci p2p", "P2P", "device memory", "MMIO region", "VfioMapRegion")
#: Words of messages about guest RAM only: cloud-hypervisor's.
_RAM_WORDS = ("VfioDmaMap(", "Failed to DMA map VFIO device:")
#: First address of the 64-bit PCI window of QEMU's virt board (hw/arm/virt.c extended_memmap);
#: firmware of x86 guests puts its window above that, too.
_HIGH_WINDOW = 0x80_0000_0000
#: Every IOMMU translates the addresses below.
_FOUR_GIB = 0x1_0000_0000
#: First address of RAM of QEMU's virt board; PCI windows and devices are below.
_VIRT_RAM = 0x4000_0000
#: Reserved regions of any host of a kind: first address, size, and the host.
_KNOWN_REGIONS = (
    (SW_MSI_WINDOW.base, SW_MSI_WINDOW.size, "an Arm host, for MSIs"),
    (0xFEE0_0000, 0x10_0000, "an x86 host, for MSIs"),
    (0xFD_0000_0000, 0x3_0000_0000, "an AMD host, for HyperTransport"),
)

_PEERS = (
    "without it, devices of the guest cannot access each other's BARs (peer-to-peer); nothing else "
    "is lost"
)


@dataclass(frozen=True)
class _Failure:
    """A message about a mapping that failed.

    :param words: the line, with the words of its errno.
    :param where: the address and the size, if known.
    """

    line: str
    words: str
    where: tuple[int, int] | None


class _Kind(Enum):
    RAM = auto()
    BAR = auto()
    UNKNOWN = auto()


def case(line: str, context: LogContext) -> Case:
    """Return the case of a message about a mapping that failed."""
    words = errno_words.added(line)
    if "can't map guest IOVA region" in line:
        # Releases that print this compare with the IOMMU's aperture themselves.
        words += " (Invalid argument)"
    where = _address(line)
    kind = _kind(line, words, where, context)
    case_ = _CASES[kind](_Failure(line, words, where), context)
    if where is None:
        return case_
    address, size = where
    name = {_Kind.RAM: "guest RAM", _Kind.BAR: "a BAR", _Kind.UNKNOWN: "memory"}[kind]
    return replace(case_, ipa=Ipa(address), ipa_is=f"{name}, {size:#x} bytes" if size else name)


def cloud_hypervisor_case(line: str, context: LogContext) -> Case:
    """Return the case of a message of cloud-hypervisor, which exits if it cannot map a BAR."""
    case_ = case(line, context)
    if case_.missing != "":
        return case_
    remedy = (
        "start it with vfio_p2p_dma=off in --platform; a guest that needs peer-to-peer DMA can use "
        "VFIO containers instead of iommufd"
    )
    return replace(case_, remedies=(remedy,))


def _address(line: str) -> tuple[int, int] | None:
    """Return the address and the size of the memory; the size is 0 if unknown."""
    sized = _SIZED.search(line)
    if sized is not None:
        first, size = (int(value, 16) for value in sized.groups() if value is not None)
        return first, size
    ranged = _RANGE.search(line)
    if ranged is not None:
        first, last = (int(value, 16) for value in ranged.groups())
        # QEMU prints the last address, OpenVMM the one after it.
        return (first, last - first + last % 2) if last >= first else None
    return None


def _kind(line: str, words: str, where: tuple[int, int] | None, context: LogContext) -> _Kind:
    region = _REGION.search(line)
    if region is not None and _BAR_NAME.search(region[1]):
        return _Kind.BAR
    if any(word in line for word in _BAR_WORDS):
        return _Kind.BAR
    if region is not None and _RAM_NAME.search(region[1]):
        return _Kind.RAM
    if any(word in line for word in _RAM_WORDS):
        return _Kind.RAM
    if "Bad address" in words:
        return _Kind.BAR
    if where is None:
        return _Kind.UNKNOWN
    address, size = where
    if context.guest is not None:
        is_ram = any(_overlap(memory, address, size) for memory in context.guest.memory)
        return _Kind.RAM if is_ram else _Kind.BAR
    in_window = address >= _HIGH_WINDOW or (address < _VIRT_RAM and "aarch64" in line)
    return _Kind.BAR if in_window else _Kind.RAM


def _overlap(memory: MemoryRange, address: int, size: int) -> bool:
    return memory.base < address + max(size, 1) and address < memory.base + memory.size


def _ram(failure: _Failure, context: LogContext) -> Case:
    what = "guest RAM could not be mapped in stage 2"
    if "Invalid argument" in failure.words or "Address already in use" in failure.words:
        return _reserved(what, failure, context)
    if "Bad address" in failure.words:
        why = (
            "the kernel cannot pin this memory (EFAULT; Linux vaddr_get_pfns): its file on "
            "hugetlbfs or tmpfs (/dev/shm) has no free pages, or it is memory of a device"
        )
        remedy = (
            "back the guest's RAM with ordinary memory, or give its huge pages or /dev/shm room "
            "for all of it"
        )
        return Case(why, what, remedies=(remedy,), findings=())
    return _any_memory(what, failure.words)


def _reserved(what: str, failure: _Failure, context: LogContext) -> Case:
    address, size = failure.where or (0, 0)
    regions = _covered(failure, context)
    if regions:
        covered = ", ".join(map(str, regions))
        why = f"it covers a reserved region of the device: {covered}"
    else:
        why = (
            "it covers a reserved region of the device, or the IOMMU's width ends in it; "
            "/sys/kernel/iommu_groups/N/reserved_regions lists the regions of the device's group"
        )
        why += "".join(
            f"; {first:#x}-{first + length - 1:#x} is one on {host}"
            for first, length, host in _KNOWN_REGIONS
            if address < first + length and first < address + size
        )
    return Case(
        f"{why} (EINVAL; Linux iopt_check_iova, vfio_iommu_iova_dma_valid)",
        what,
        remedies=("move the guest's RAM, or give it less, so that it ends below the region",),
        findings=("guest-ram-reserved", "guest-ram-in-msi-window"),
    )


def _covered(failure: _Failure, context: LogContext) -> list[ReservedRegion]:
    """Return the regions in the range that the host reserves for the device or the guest's."""
    if failure.where is None or not failure.where[1]:
        return []
    addresses = [PciAddress.parse(text) for text in _DEVICE.findall(failure.line)[:_DEVICES]]
    if context.guest is not None:
        addresses += [device.host for device in context.guest.devices]
    regions: dict[ReservedRegion, None] = {}
    for address in addresses:
        host_device = context.host_device(address)
        for region in () if host_device is None else host_device.reserved:
            if region.overlaps(*failure.where):
                regions[region] = None
    return list(regions)


def _bar(failure: _Failure, _context: LogContext) -> Case:
    what = "a BAR of an assigned device could not be mapped for the guest's other devices"
    if "Invalid argument" in failure.words and failure.where is not None:
        reason = (
            "its address is beyond the IOMMU's width, or in a reserved region"
            if failure.where[0] >= _FOUR_GIB
            else "it is in a reserved region, such as the MSI window of the host"
        )
        why = f"{reason} (EINVAL; Linux vfio_iommu_iova_dma_valid); {_PEERS}"
        remedy = (
            "nothing has to be fixed without peer-to-peer DMA. Otherwise give the guest a smaller "
            "64-bit PCI window: fewer physical address bits, a larger OAS, <pcihole64>, or the "
            "firmware's setting"
        )
        return Case(why, what, "", (remedy,), ())
    if "Cannot allocate memory" in failure.words or "File exists" in failure.words:
        return _any_memory(what, failure.words, missing="")
    reason = (
        "the kernel cannot pin memory of a device (EFAULT; Linux vaddr_get_pfns, iommufd's "
        "pfn_reader_user_pin)"
        if "Bad address" in failure.words
        else "the IOMMU does not map it"
    )
    remedy = (
        "nothing has to be fixed without peer-to-peer DMA, unless an old QEMU exits at this: use a "
        "newer one. Otherwise use VFIO containers, or a kernel and a VMM that map BARs as dma-buf "
        "(Linux 6.19 or newer)"
    )
    return Case(f"{reason}; {_PEERS}", what, "", (remedy,), ())


def _any_memory(what: str, words: str, missing: str | None = None) -> Case:
    if "Cannot allocate memory" in words:
        return Case(
            "the VMM would exceed its limit on locked memory (ENOMEM)",
            what,
            missing,
            (
                "set <memtune><hard_limit/></memtune> to the RAM plus 1 GiB",
                "without libvirt, raise the limit of the VMM's process: ulimit -l, LimitMEMLOCK=",
            ),
            ("memlock",),
        )
    if "No space left" in words:
        return Case(
            "the container has as many mappings as it may have (ENOSPC; Linux vfio_dma_do_map: "
            "dma_entry_limit, 65535)",
            what,
            missing,
            ("raise vfio_iommu_type1.dma_entry_limit, or use larger blocks of virtio-mem",),
            (),
        )
    if "File exists" in words or "Device or resource busy" in words:
        return Case(
            "another mapping is at this address already (EEXIST; Linux vfio_dma_do_map, "
            "iopt_check_iova)",
            what,
            missing,
            ("look for an error at an earlier unmapping; update the VMM",),
            (),
        )
    return Case(
        "the kernel's log may have the reason",
        what,
        missing,
        ("look for the kernel's reason: dmesg | vmm-msi explain",),
    )


def _unknown(failure: _Failure, context: LogContext) -> Case:
    what = "memory of the guest could not be mapped in stage 2"
    if "Invalid argument" in failure.words:
        return Case(
            "if it is guest RAM, it covers a reserved region of the device. If it is a BAR, its "
            f"address is beyond the IOMMU's width: {_PEERS} (EINVAL; Linux "
            "vfio_iommu_iova_dma_valid)",
            what,
            remedies=(
                "look for the address in the next lines, such as vfio_dma_map(…)",
                *_reserved(what, failure, context).remedies,
            ),
            findings=("guest-ram-reserved", "guest-ram-in-msi-window"),
        )
    return _any_memory(what, failure.words)


_CASES = {_Kind.RAM: _ram, _Kind.BAR: _bar, _Kind.UNKNOWN: _unknown}
