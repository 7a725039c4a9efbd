"""The RAM of a guest and its limit of locked memory.

An assigned device can write to any page of the guest at any time, so the kernel pins all pages
while the guest has such a device, and pinned pages count against the limit of locked memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.domxml import iommufd_objects
from vmm_msi.domxml.guest_domain import VIRT_RAM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lxml.etree import _Element as Element

    from vmm_msi.domxml.libvirt_domain import DomainXml

_MIB, _GIB = 1 << 20, 1 << 30
#: libvirt's value for "unlimited": VIR_DOMAIN_MEMORY_PARAM_UNLIMITED, in KiB.
_UNLIMITED = 9007199254740991 << 10


class Ram(NamedTuple):
    """``size`` bytes of guest RAM from the IPA ``base``, according to ``element``."""

    base: int
    size: int
    element: Element


def guest_ram(domain: DomainXml) -> Iterator[Ram]:
    """Yield the RAM of a guest on QEMU's virt board, and the room for memory devices.

    RAM begins at 1 GiB. Memory devices have a range of their own that begins at the next GiB and
    has a further GiB for each slot (QEMU ``hw/arm/virt.c`` virt_set_memmap); a memory device with
    an address is at that address.

    :raise DomainXmlError: when a size or an address cannot be read.
    """
    element = domain.root.find("memory")
    if element is None:
        element = domain.root.find("cpu/numa")
    if element is None:
        return
    modules = [*domain.root.iterfind("devices/memory")]
    sizes = [domain.size(size) for module in modules for size in module.iterfind("target/size")]
    boot = max(_up(domain.memory, _MIB) - sum(sizes), 0)
    yield Ram(VIRT_RAM, boot, element)
    for module in modules:
        size, address = module.find("target/size"), module.find("address")
        if address is None or address.get("base") is None:
            address = module.find("target/address")
        if size is not None and address is not None and address.get("base") is not None:
            yield Ram(domain.number(address, "base"), domain.size(size), module)
    most = domain.root.find("maxMemory")
    if most is not None:
        room = max(domain.size(most) - boot, 0) + domain.number(most, "slots") * _GIB
        yield Ram(_up(VIRT_RAM + boot, _GIB), room, most)


@dataclass(frozen=True, slots=True)
class Locking:
    """How much memory a guest with assigned devices locks, and how much it may.

    :param needed: bytes that the limit must allow. The kernel pins all RAM once for each iommufd
        object, however many stages 2 map it (Linux ``drivers/iommu/iommufd/pages.c``): that of
        libvirt counts for the process, the others for its user.
    :param allowed: bytes that libvirt lets QEMU lock; None for unlimited.
    :param hard_limit: the element that sets the limit; None if libvirt computes it.
    """

    needed: int
    allowed: int | None
    hard_limit: Element | None


#: What libvirt adds to the RAM of a guest with assigned devices.
HEADROOM = _GIB


def locking(domain: DomainXml, hostdevs: int) -> Locking:
    """Return the limit of libvirt 12.8: ``src/qemu/qemu_domain.c`` qemuDomainGetMemLockLimitBytes.

    ``<hard_limit>`` sets the limit and ``<locked/>`` removes it; otherwise it is all RAM, once for
    each assigned device if the guest has an ``<iommu>``, plus a GiB.

    :param hostdevs: number of its assigned PCI devices.
    :raise DomainXmlError: when a size cannot be read.
    """
    ram = _up(domain.memory, _MIB)
    needed = max(len(iommufd_objects.elements_by_id(domain)), 1) * ram
    limit = domain.root.find("memtune/hard_limit")
    if limit is not None and domain.size(limit) < _UNLIMITED:
        return Locking(needed, domain.size(limit), limit)
    if domain.root.find("memoryBacking/locked") is not None:
        return Locking(needed, None, None)
    mediated = len(domain.root.findall("devices/hostdev[@type='mdev']"))
    devices = hostdevs + mediated
    times = devices if domain.iommus() else min(devices, 1)
    return Locking(needed, times * ram + HEADROOM if devices else 0, None)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
