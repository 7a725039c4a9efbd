"""Addresses, ids and reserved regions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Self

from vmm_msi.errors import InputError


class Address(int):
    """An address in one of the three address spaces, printed in hexadecimal."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self):#x})"

    def __str__(self) -> str:
        return f"{int(self):#x}"

    def align_down(self, size: int) -> Self:
        """Return the address aligned down to ``size`` bytes, a power of two."""
        return type(self)(self & ~(size - 1))

    def is_aligned(self, size: int) -> bool:
        """Return whether the address is a multiple of ``size`` bytes, a power of two."""
        return not self & (size - 1)

    def offset(self, distance: int) -> Self:
        """Return the address ``distance`` bytes further, in the same address space."""
        return type(self)(self + distance)


class Iova(Address):
    """An address that a device emits, before stage 1."""

    __slots__ = ()


class Ipa(Address):
    """An intermediate physical address: after stage 1, before stage 2."""

    __slots__ = ()


class Pa(Address):
    """A host physical address, after stage 2."""

    __slots__ = ()


class StreamId(int):
    """The number that identifies a device to an SMMU."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{int(self):#x}"


class DeviceId(int):
    """The number that identifies a device to an ITS."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{int(self):#x}"


class Granule(IntEnum):
    """Page size of one translation stage, in bytes."""

    K4 = 4096
    K16 = 16384
    K64 = 65536

    @classmethod
    def parse(cls, text: str) -> Granule:
        """Read ``4K``, ``16K`` or ``64K``.

        :raise InputError: when it is none of them.
        """
        try:
            return cls[f"K{text.removesuffix('K')}"] if text.endswith("K") else cls(int(text))
        except (KeyError, ValueError):
            raise InputError(f"granule {text!r}: not one of 4K, 16K, 64K") from None

    def __str__(self) -> str:
        return f"{self.value >> 10}K"


_PCI = re.compile(
    r"(?:(?P<segment>[0-9a-f]{1,4}):)?(?P<bus>[0-9a-f]{1,2}):(?P<device>[01]?[0-9a-f])\.(?P<function>[0-7])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, order=True)
class PciAddress:
    """Segment (libvirt and Linux say PCI domain), bus, device and function."""

    segment: int
    bus: int
    device: int
    function: int

    @classmethod
    def parse(cls, text: str) -> PciAddress:
        """Read ``0000:01:00.0``, ``01:00.0`` or libvirt's ``pci_0000_01_00_0``.

        :raise InputError: when it is none of them.
        """
        plain = text
        if text.startswith("pci_"):
            plain = re.sub(r"^pci_(\w+)_(\w+)_(\w+)_(\w)$", r"\1:\2:\3.\4", text)
        match = _PCI.fullmatch(plain)
        if match is None:
            raise InputError(
                f"PCI address {text!r}: not of the form 0000:01:00.0 (segment:bus:device.function)"
            )
        part = {key: int(value or "0", 16) for key, value in match.groupdict().items()}
        return cls(**part)

    @classmethod
    def from_rid(cls, segment: int, rid: int) -> PciAddress:
        """Return the address of ``rid``, a 16-bit RequesterID."""
        return cls(segment, rid >> 8, rid >> 3 & 0x1F, rid & 7)

    @property
    def rid(self) -> int:
        """The RequesterID: bus in bits 15:8, device in 7:3, function in 2:0."""
        return self.bus << 8 | self.device << 3 | self.function

    def __hash__(self) -> int:
        """Return a number of its own for each address: they are the keys of most tables."""
        return self.segment << 16 | self.bus << 8 | self.device << 3 | self.function

    def __str__(self) -> str:
        return f"{self.segment:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"


class ReservedKind(StrEnum):
    """Type of a reserved region, as in ``/sys/kernel/iommu_groups/*/reserved_regions``.

    sysfs prints both ``HW_MSI`` and ``SW_MSI`` as ``msi``: Linux
    ``drivers/iommu/iommu.c`` iommu_group_resv_type_string.
    """

    DIRECT = "direct"
    DIRECT_RELAXABLE = "direct-relaxable"
    RESERVED = "reserved"
    HW_MSI = "hw-msi"
    SW_MSI = "sw-msi"


@dataclass(frozen=True, slots=True)
class ReservedRegion:
    """A range of IOVAs, ``size`` bytes from ``base``, that a device cannot use freely."""

    base: int
    size: int
    kind: ReservedKind

    @property
    def last(self) -> int:
        """The last address of the region."""
        return self.base + self.size - 1

    def overlaps(self, base: int, size: int) -> bool:
        """Return whether ``size`` bytes from ``base`` overlap the region."""
        return base <= self.last and self.base <= base + size - 1

    def __str__(self) -> str:
        return f"{self.base:#x}-{self.last:#x} ({self.kind})"


#: The software MSI window that Linux's SMMU driver reserves for every device:
#: ``drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c`` MSI_IOVA_BASE and MSI_IOVA_LENGTH.
SW_MSI_WINDOW = ReservedRegion(0x0800_0000, 0x0010_0000, ReservedKind.SW_MSI)
