"""Find the RequesterIDs with which DMA and MSIs of a PCI function reach the host bridge.

Bridges to conventional PCI replace the function's RequesterID by their own, and some functions use
that of another function. The walk is that of Linux 7.2 ``drivers/pci/search.c``
pci_for_each_dma_alias; the tables are the vendors and devices in ``drivers/pci/quirks.c``, without
the quirks that read the device's registers (Switchtec NTBs) or are of other architectures (VMD).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.host.files.paths import MAX_PARTS
from vmm_msi.host.pci.config_space import ExpressType

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmm_msi.host.pci.config_space import PciConfig
    from vmm_msi.types import PciAddress

#: ``vendor << 16 | device`` of functions that use function 0 of their device:
#: quirk_dma_func0_alias.
_USE_FUNCTION_0 = frozenset({0x1180_E832, 0x1180_E476, 0x6766_3D40, 0x6766_3D41})
#: Those that use function 1, which need not exist: quirk_dma_func1_alias.
_USE_FUNCTION_1 = frozenset(
    {
        *(
            0x1B4B_0000 | device
            for device in (
                *(0x9120, 0x9123, 0x9125, 0x9128, 0x9130, 0x9170, 0x9172, 0x917A),
                *(0x9182, 0x9183, 0x91A0, 0x9215, 0x9220, 0x9230, 0x9235),
            )
        ),
        *(0x1103_0642, 0x1103_0645, 0x197B_2392, 0x1C28_0122),
    }
)
#: Those that use other devices of their bus, as (first, number): quirk_mic_x200_dma_alias,
#: quirk_pex_vca_alias and quirk_plx_ntb_dma_alias.
_MIC_X200 = ((0x80, 1), (0x88, 1), (0x93, 1))
_VCA = tuple((slot << 3, 5) for slot in range(32))
_PLX = ((0, 256),)
_USE_OTHERS: Mapping[int, tuple[tuple[int, int], ...]] = {
    **dict.fromkeys((0x8086_2260, 0x8086_2264), _MIC_X200),
    **{0x8086_0000 | device: _VCA for device in (0x2954, 0x2955, 0x2956, 0x2958, 0x2959, 0x295A)},
    **dict.fromkeys((0x10B5_87B0, 0x10B5_87B1), _PLX),
}
#: The same, by subsystem too: fixed_dma_alias_tbl.
_USE_OTHER_CARDS: Mapping[tuple[int, tuple[int, int]], int] = {
    (0x9005_0285, (0x9005, 0x02BB)): 1 << 3,
    (0x9005_0285, (0x9005, 0x02BC)): 1 << 3,
}
#: Bridges above the SMMU: quirk_bridge_cavm_thrx2_pcie_root.
_SMMU_BELOW = frozenset({0x14E4_9000, 0x14E4_9084})
#: Bridges to conventional PCI that keep RequesterIDs: quirk_aspeed_pci_bridge_no_alias.
_KEEP_RIDS = frozenset({0x1A03_1150})
#: Bridges to conventional PCI without the capability: quirk_use_pcie_bridge_dma_alias.
_HIDDEN_PCI_BRIDGES = frozenset({0x1B21_1080, 0x10E3_8113, 0x1283_8892, 0x1283_8893, 0x8086_244E})

#: Limit of bridges above each other: sysfs has a folder in a folder for each, and a path in a
#: capture has no more names.
_MAX_DEPTH = MAX_PARTS


@dataclass(frozen=True, slots=True)
class PciPlace:
    """A PCI function, its ids, configuration space and place in the hierarchy.

    :param bridge: the bridge above it; None on a root bus.
    """

    address: PciAddress
    vendor: int
    device: int
    config: PciConfig
    bridge: PciAddress | None

    @property
    def id(self) -> int:
        """``vendor << 16 | device``."""
        return self.vendor << 16 | self.device


def rids(
    place: PciPlace, places: Mapping[PciAddress, PciPlace]
) -> tuple[tuple[int, ...], int] | None:
    """Return the RequesterIDs of a function's DMA, and the one of its MSIs.

    :param places: all functions of the host.
    :return: None if a bridge above it is not known well enough.
    """
    dma: dict[int, None] = {}
    msi = place.address.rid
    for alias in _aliases(place, places):
        if alias is None:
            return None
        bus, rid = alias
        dma[rid] = None
        # drivers/pci/msi/irqdomain.c get_msi_id_cb: aliases on the function's own bus do not count.
        if bus != msi >> 8 or rid >> 8 != msi >> 8:
            msi = rid
    return tuple(dma), msi


def _aliases(
    place: PciPlace, places: Mapping[PciAddress, PciPlace]
) -> Iterator[tuple[int, int] | None]:
    """Yield the bus of a function or bridge and its alias; None if the next bridge is unknown."""
    bus = place.address.bus
    yield bus, place.address.rid
    for devfn in _quirks(place):
        yield bus, bus << 8 | devfn
    above = place.bridge
    for _ in range(_MAX_DEPTH):
        if above is None:
            return
        bridge = places.get(above)
        if bridge is None or bridge.config.is_express is None:
            yield None
            return
        if bridge.id in _SMMU_BELOW:
            return
        alias = _alias_of_bridge(bridge, places)
        if alias is not None:
            yield bridge.address.bus, alias
        above = bridge.bridge
    yield None


def _quirks(place: PciPlace) -> list[int]:
    """Return the devfns of its bus that a function uses in addition to its own, sorted."""
    own = place.address.rid & 0xFF
    devfns = {
        devfn
        for first, number in _USE_OTHERS.get(place.id, ())
        for devfn in range(first, first + number)
    }
    if place.id in _USE_FUNCTION_0:
        devfns.add(own & ~7)
    if place.id in _USE_FUNCTION_1:
        devfns.add(own & ~7 | 1)
    if place.config.subsystem is not None:
        card = _USE_OTHER_CARDS.get((place.id, place.config.subsystem))
        devfns |= set() if card is None else {card}
    return sorted(devfns - {own})


def _alias_of_bridge(bridge: PciPlace, places: Mapping[PciAddress, PciPlace]) -> int | None:
    """Return the RequesterID by which a bridge replaces those from below; None if it keeps them."""
    config = bridge.config
    below = (config.subordinate or 0) << 8
    if not config.is_express:
        return below if _is_hidden_pci_bridge(bridge, places) else bridge.address.rid
    if config.express_type == ExpressType.PCI_BRIDGE:
        return None if bridge.id in _KEEP_RIDS else below
    return bridge.address.rid if config.express_type == ExpressType.PCIE_BRIDGE else None


def _is_hidden_pci_bridge(bridge: PciPlace, places: Mapping[PciAddress, PciPlace]) -> bool:
    if bridge.id not in _HIDDEN_PCI_BRIDGES or bridge.bridge is None or not bridge.config.is_bridge:
        return False
    above = places.get(bridge.bridge)
    return (
        above is not None
        and bool(above.config.is_express)
        and above.config.express_type != ExpressType.PCI_BRIDGE
    )
