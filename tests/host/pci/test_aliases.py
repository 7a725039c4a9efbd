"""RequesterIDs of DMA and MSIs, derived by hand from Linux pci_for_each_dma_alias."""

from __future__ import annotations

import pytest
from host.host_files import config

from vmm_msi.host.pci.aliases import PciPlace, rids
from vmm_msi.host.pci.config_space import PciConfig, read_config
from vmm_msi.types import PciAddress

ROOT_PORT, UPSTREAM, DOWNSTREAM, TO_PCI, TO_PCIE = 4, 5, 6, 7, 8


def address(text):
    return PciAddress.parse(text)


def place(text, ids=(1, 2), below=None, **options):
    space = config(ids, **options)
    parsed = read_config(lambda offset, size: space[offset : offset + size])
    return PciPlace(address(text), *ids, parsed, None if below is None else address(below))


def aliases(*places):
    """Return the RequesterIDs of the last of ``places``."""
    return rids(places[-1], {function.address: function for function in places})


def port(**options):
    return place("00:01.0", bridge=(0, 1, 9), express=ROOT_PORT, **options)


def test_on_a_root_bus():
    assert aliases(place("00:02.1", express=9)) == ((0x0011,), 0x0011)


def test_below_root_port_and_switch():
    requester_ids = aliases(
        port(),
        place("01:00.0", below="00:01.0", bridge=(1, 2, 9), express=UPSTREAM),
        place("02:03.0", below="01:00.0", bridge=(2, 3, 9), express=DOWNSTREAM),
        place("03:00.2", below="02:03.0", express=0),
    )
    assert requester_ids == ((0x0302,), 0x0302)


def test_below_a_bridge_to_pci():
    bridge = place("01:00.0", below="00:01.0", bridge=(1, 2, 4), express=TO_PCI)
    requester_ids = aliases(port(), bridge, place("02:05.0", below="01:00.0"))
    assert requester_ids == ((0x0228, 0x0400), 0x0400)


def test_a_bridge_to_pci_that_keeps_requester_ids():
    bridge = place("01:00.0", (0x1A03, 0x1150), below="00:01.0", bridge=(1, 2, 2), express=TO_PCI)
    assert aliases(port(), bridge, place("02:00.0", below="01:00.0")) == ((0x0200,), 0x0200)


def test_below_conventional_bridges_the_outermost_wins():
    outer = place("00:04.0", bridge=(0, 1, 3))
    inner = place("01:02.0", below="00:04.0", bridge=(1, 2, 3))
    requester_ids = aliases(outer, inner, place("02:00.0", below="01:02.0"))
    assert requester_ids == ((0x0200, 0x0110, 0x0020), 0x0020)


def test_below_a_reverse_bridge():
    bridge = place("00:04.0", bridge=(0, 1, 3), express=TO_PCIE)
    assert aliases(bridge, place("01:00.0", below="00:04.0")) == ((0x0100, 0x0020), 0x0020)


@pytest.mark.parametrize(
    ("above", "expected"),
    [({"express": ROOT_PORT}, 0x0500), ({"express": TO_PCI}, 0x0900), ({}, 0x0008)],
)
def test_a_bridge_to_pci_without_the_capability(above, expected):
    """An ASM1083 is one if it is below PCI Express other than a bridge to PCI."""
    top = place("00:01.0", bridge=(0, 1, 9), **above)
    hidden = place("01:00.0", (0x1B21, 0x1080), below="00:01.0", bridge=(1, 2, 5))
    dma, msi = aliases(top, hidden, place("02:00.0", below="01:00.0"))
    assert msi == expected
    assert dma[1] == (0x0500 if above.get("express") == ROOT_PORT else 0x0100)


def test_a_quirk_does_not_apply_to_msis():
    """A Marvell 88SE9123, which sends its DMA as function 1 even if that does not exist."""
    requester_ids = aliases(port(), place("01:00.0", (0x1B4B, 0x9123), below="00:01.0", express=0))
    assert requester_ids == ((0x0100, 0x0101), 0x0100)


@pytest.mark.parametrize(
    ("ids", "text", "more", "expected"),
    [
        ((0x1180, 0xE832), "01:02.3", {}, [0x0113, 0x0110]),
        ((0x1180, 0xE832), "01:02.0", {}, [0x0110]),
        ((0x1B4B, 0x91A0), "01:00.1", {}, [0x0101]),
        ((0x197B, 0x2392), "01:00.0", {}, [0x0100, 0x0101]),
        ((0x8086, 0x2264), "01:00.0", {}, [0x0100, 0x0180, 0x0188, 0x0193]),
        ((0x9005, 0x0285), "01:0e.0", {"subsystem": (0x9005, 0x02BC)}, [0x0170, 0x0108]),
        ((0x9005, 0x0285), "01:0e.0", {"subsystem": (0x9005, 0x02BD)}, [0x0170]),
    ],
)
def test_quirks(ids, text, more, expected):
    dma, msi = aliases(port(), place(text, ids, below="00:01.0", **more))
    assert list(dma) == expected
    assert msi == expected[0]


def test_bridges_with_many_aliases():
    dma, _msi = aliases(place("00:00.0", (0x8086, 0x2954)))
    assert len(dma) == 32 * 5
    dma, _msi = aliases(place("00:00.1", (0x10B5, 0x87B0)))
    assert (len(dma), dma[:3]) == (256, (1, 0, 2))


def test_bridges_above_the_smmu_do_not_count():
    top = place("00:01.0", bridge=(0, 1, 9))
    vulcan = place("01:00.0", (0x14E4, 0x9084), below="00:01.0", bridge=(1, 2, 9), express=TO_PCI)
    assert aliases(top, vulcan, place("02:00.0", below="01:00.0")) == ((0x0200,), 0x0200)


def test_an_unknown_bridge():
    unread = PciPlace(address("00:01.0"), 1, 2, PciConfig(is_bridge=True, subordinate=1), None)
    below = place("01:00.0", below="00:01.0")
    assert aliases(unread, below) is None
    assert aliases(below) is None


def test_a_cycle_of_bridges():
    one = place("00:01.0", below="01:00.0", bridge=(0, 1, 1), express=ROOT_PORT)
    other = place("01:00.0", below="00:01.0", bridge=(1, 0, 0), express=ROOT_PORT)
    assert aliases(one, other, place("02:00.0", below="00:01.0")) is None
