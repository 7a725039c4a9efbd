"""Addresses that a device may have: the kernel assigns slots by order of first use."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from scenarios import Device, Sample, pair, simulated_verdicts

from vmm_msi.host.scenario import parse_scenario
from vmm_msi.types import Iova
from vmm_msi.types.verdict import addresses_text, possible_addresses

SLOT_STRATEGIES = ["identity", "multi-its:mode=vsmmu", "window"]
KERNELS = {
    "identity": "linux-7.2",
    "multi-its:mode=vsmmu": "linux-7.2",
    "window": "linux-sw-msi-option",
    "direct": "linux-7.2-bind",
    "multi-its:mode=s2": "linux-7.2-bind",
    "preset": "linux-vfio-msi-iova",
}


def _verdicts(sample: Sample, strategy: str):
    return simulated_verdicts(parse_scenario(sample.toml(), "test"), strategy, KERNELS[strategy])


@pytest.mark.parametrize("strategy", SLOT_STRATEGIES)
def test_each_order_programs_one_of_the_possible_addresses(strategy):
    """Four devices of three ITSes: the addresses seen in all orders are those predicted."""
    devices = tuple(
        Device(f"0000:0{number}:00.0", its=its, stage1="s1a")
        for number, its in enumerate((0, 1, 2, 1), 1)
    )
    sample = Sample(devices)
    predicted = {v.device: set(v.possible) for v in _verdicts(sample, strategy)}
    seen = {address: set() for address in predicted}
    for order in permutations(devices):
        for verdict in _verdicts(replace(sample, devices=order), strategy):
            seen[verdict.device].add(verdict.programmed)
    assert seen == predicted
    assert set(map(len, seen.values())) == {3}


@pytest.mark.parametrize("strategy", SLOT_STRATEGIES)
def test_devices_of_one_its_have_a_certain_address(strategy):
    verdicts = _verdicts(pair("own", pits=1), strategy)
    assert [v.possible for v in verdicts] == [(0x8000040,), (0x8000040,)]


@pytest.mark.parametrize("strategy", ["direct", "multi-its:mode=s2", "preset"])
def test_an_address_of_the_guest_is_certain(strategy):
    verdicts = _verdicts(pair("own", pits=2), strategy)
    assert all(v.possible in {(), (v.programmed,)} for v in verdicts)
    assert verdicts[0].possible == (0xFFFFF040,)


def test_a_refused_device_has_no_address():
    refused = _verdicts(pair("own", pits=2), "direct")[1]
    assert (refused.programmed, refused.possible) == (None, ())


def test_a_page_beside_the_slots_is_certain():
    slots = [Iova(0x8000000), Iova(0x8001000)]
    assert possible_addresses(Iova(0x8090040), slots, 0x1000) == (0x8090040,)


def test_addresses_for_people():
    addresses = [Iova(0x8000040 + number * 0x1000) for number in range(4)]
    assert addresses_text(addresses[:1]) == "0x8000040"
    assert addresses_text(addresses[:3]) == "0x8000040 or 0x8001040 or 0x8002040"
    assert addresses_text(addresses) == "one of 0x8000040 to 0x8003040"
