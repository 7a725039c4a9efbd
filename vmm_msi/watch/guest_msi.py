"""Read the addresses that a guest wrote into the MSIs of its devices, through libvirt.

QEMU emulates configuration space, MSI capability and MSI-X table of an assigned device, so the
guest's addresses are in QEMU alone: the device itself has those of the host. libvirt reads them
with virDomainMemoryPeek, since QEMU's pmemsave reads devices as well as RAM (QEMU
``system/cpus.c`` qmp_pmemsave, ``hw/pci/pcie_host.c`` pcie_mmcfg_data_read, ``hw/pci/msix.c``
msix_table_mmio_read). Unlike a monitor command it is a call of libvirt's API and does not mark the
guest as tainted. It requires a connection for reading and writing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml.guest_buses import guest_addresses
from vmm_msi.domxml.guest_domain import VIRT_RAM
from vmm_msi.domxml.placement import Placement
from vmm_msi.errors import BackendError
from vmm_msi.iommu.linux import msi, msi_table
from vmm_msi.types import ITS_TRANSLATER_OFFSET, Iova
from vmm_msi.types.host import PA_END

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.types import PciAddress

    #: Reads bytes of a guest's physical address space, devices included: address and size.
    ReadMemory = Callable[[int, int], bytes]

_GIB = 1 << 30
#: The ECAM of QEMU's virt board lies 256 MiB above its highest RAM, which is taken to end at 256
#: GiB at least; without redistributors above RAM right there; on boards with highmem-ecam=off at
#: 0x3f000000 (QEMU ``hw/arm/virt.c`` extended_memmap, virt_set_high_memmap).
_RAM_END = 256 * _GIB
_ECAM_DISTANCE = 0x1000_0000
_LOW_ECAM = 0x3F00_0000
#: Vendor and device of the function 0000:00:00.0 there: QEMU's gpex-root.
_HOST_BRIDGE = bytes.fromhex("361b0800")
_FUNCTION_BYTES = 0x1000

# In the upper byte of the message control.
_MSIX_ENABLED = 1 << 7
# The place of the doorbell in its page, whatever the size of the page.
_IN_PAGE = 0xFFF
_OFFSET = ITS_TRANSLATER_OFFSET & _IN_PAGE

_COMMAND = 4
_MEMORY = 1 << 1
_BAR = 0x10
_BARS = 6
_BAR_64 = 4
_ENTRY_WORDS = msi.MSIX_ENTRY_BYTES // 4
#: Entries of an MSI-X table that are read: Linux has the MSIs of a device on one page, so that the
#: first ones show it.
_ENTRIES = 64


class GuestMsiReader:
    """Reads the MSIs of the devices behind the expander buses of one running guest.

    :param xml: the live XML.
    :param memory: reads its physical address space.
    """

    def __init__(self, xml: DomainXml, memory: ReadMemory) -> None:
        self._xml = xml
        self._memory = memory
        self._places = {host: place for place, host in guest_addresses(Placement(xml)).items()}
        self._ecam: int | None = None

    def written(self, device: PciAddress) -> tuple[Iova, ...] | None:
        """Return the distinct addresses in the MSIs of a device, those in unmasked ones first.

        :param device: its address on the host.
        :return: empty before the guest wrote the address of a doorbell; None if the device is not
            found, such as before the firmware numbered the buses.
        :raise HypervisorError: when libvirt refuses.
        """
        place, ecam = self._places.get(device), self._find_ecam()
        if place is None or ecam is None:
            return None
        config = self._memory(ecam + place.rid * _FUNCTION_BYTES, msi.CONFIG_BYTES)
        if len(config) < msi.CONFIG_BYTES or config[:2] in {b"\xff\xff", b"\0\0"}:
            return None
        offsets = msi.capabilities(config)
        at = offsets.get(msi.PCI_CAP_ID_MSI)
        if at is not None and config[at + 2] & msi.MSI_ENABLE:
            return _distinct(msi_table.of_capability(config, at))
        at = offsets.get(msi.PCI_CAP_ID_MSIX)
        # Linux enables MSI-X before it writes the table (drivers/pci/msi/msi.c
        # msix_capability_init); before that, BARs may lead anywhere while firmware sizes them.
        enabled = at is not None and config[at + 3] & _MSIX_ENABLED
        return self._in_table(config) if enabled else ()

    def _in_table(self, config: bytes) -> tuple[Iova, ...]:
        try:
            table = msi_table.table_of(config)
        except BackendError:
            return ()
        base = _bar(config, table.bar) if table.bar < _BARS else 0
        if not config[_COMMAND] & _MEMORY or not 0 < base < PA_END:
            return ()
        size = min(table.entries, _ENTRIES) * msi.MSIX_ENTRY_BYTES
        data = self._memory(base + table.offset, size)
        words = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
        unmasked = msi_table.of_table(words)
        masked = {
            at // _ENTRY_WORDS: Iova(words[at] | words[at + 1] << 32)
            for at in range(0, len(words), _ENTRY_WORDS)
            if at // _ENTRY_WORDS not in unmasked
        }
        return _distinct({**unmasked, **masked})

    def _find_ecam(self) -> int | None:
        """Return the base of the configuration space; None if it is not found."""
        if self._ecam is None:
            for base in _ecam_bases(self._xml.memory):
                if self._memory(base, 4) == _HOST_BRIDGE:
                    self._ecam = base
                    break
        return self._ecam


def _ecam_bases(memory: int) -> Sequence[int]:
    """Return where the ECAM may be in a guest with ``memory`` bytes of RAM, likely ones first."""
    end = max(-(-(VIRT_RAM + memory) // _GIB) * _GIB, _RAM_END)
    return end + _ECAM_DISTANCE, end, _LOW_ECAM


def _bar(config: bytes, number: int) -> int:
    """Return the address in a BAR; 0 if it has none."""
    at = _BAR + 4 * number
    low = int.from_bytes(config[at : at + 4], "little")
    high = int.from_bytes(config[at + 4 : at + 8], "little") if low & _BAR_64 else 0
    return (low & ~0xF) | high << 32


def _distinct(addresses: Mapping[int, Iova]) -> tuple[Iova, ...]:
    """Return the distinct addresses that can be those of a doorbell."""
    doorbells = (address for address in addresses.values() if address & _IN_PAGE == _OFFSET)
    return tuple(dict.fromkeys(doorbells))
