"""Which test device stands in for which device of a scenario; values as JSON and back."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given
from scenarios import A, B, Device, Sample, pair

from vmm_msi.errors import LabError, UsageError
from vmm_msi.host.scenario import load_scenario
from vmm_msi.lab.backend import device_roles
from vmm_msi.lab.machine.shape import Shape
from vmm_msi.lab.rpc.codec import from_wire, to_wire
from vmm_msi.types import GuestDomain, HostTopology, Iova, Outcome, PciAddress, TraceStep, Verdict


@pytest.fixture
def load(tmp_path):
    def load(sample):
        path = tmp_path / "scenario.toml"
        path.write_text(sample.toml())
        return load_scenario(path)

    return load


def agent_devices(*groups):
    """Return devices as the agent lists them, from (SMMU, number of functions) of each group."""
    devices = [
        {"address": "0000:00:01.0", "vendor": 0x1B36, "device": 12, "group": 99, "smmu": "a"}
    ]
    for group, (smmu, functions) in enumerate(groups):
        for function in range(functions):
            address = f"0000:{16 + group:02x}:00.{function}"
            fields = {"vendor": 0x1234, "device": 0x11E8, "group": group, "smmu": smmu}
            devices.append({"address": address, **fields})
    return devices


def at(text):
    return PciAddress.parse(text)


def test_devices_of_one_smmu_get_stand_ins_behind_one_smmu(load):
    scenario = load(Sample((Device(A, smmu=0), Device(B, smmu=3), Device("0000:03:00.0", smmu=0))))
    parts = device_roles.assign(scenario, agent_devices(("b", 1), ("a", 1), ("a", 1), ("b", 1)))
    assert parts == {
        at(A): at("0000:11:00.0"),
        at("0000:03:00.0"): at("0000:12:00.0"),
        at(B): at("0000:10:00.0"),
    }


def test_group_gets_a_pair_and_single_devices_do_not(load):
    devices = (Device("0000:01:00.0", group=7), Device("0000:01:00.1", group=7), Device(B))
    parts = device_roles.assign(load(Sample(devices)), agent_devices(("a", 2), ("a", 1)))
    assert parts == {
        at("0000:01:00.0"): at("0000:10:00.0"),
        at("0000:01:00.1"): at("0000:10:00.1"),
        at(B): at("0000:11:00.0"),
    }
    with pytest.raises(LabError, match="--pairs N"):
        device_roles.assign(load(Sample(devices)), agent_devices(("a", 1), ("a", 1), ("a", 1)))


def test_too_few_smmus_are_refused(load):
    scenario = load(Sample((Device(A, smmu=0), Device(B, smmu=1))))
    with pytest.raises(LabError, match="--smmus 2"):
        device_roles.assign(scenario, agent_devices(("a", 1), ("a", 1)))


@pytest.mark.parametrize(
    ("sample", "shape"),
    [
        (pair("own"), Shape()),
        (
            Sample(tuple(Device(f"0000:{n:02x}:00.0", smmu=n % 3) for n in range(1, 10))),
            Shape(3, 9),
        ),
        (
            Sample((Device("0000:01:00.0", group=7), Device("0000:01:00.1", group=7))),
            Shape(2, 4, 1),
        ),
        (pair("own", pits=2), Shape()),
    ],
)
def test_shape_for_a_scenario_is_the_smallest(load, sample, shape):
    assert device_roles.shape_for(load(sample), own_its=False) == shape


def spread(smmus, itses, count):
    """Return devices spread over SMMUs and ITSes."""
    return Sample(
        tuple(
            Device(f"0000:{n + 1:02x}:00.0", smmu=n % smmus, its=n // smmus % itses)
            for n in range(count)
        )
    )


@pytest.mark.parametrize(
    ("sample", "shape"),
    [
        (pair("own"), Shape(itses=1)),
        (pair("own", pits=2), Shape(itses=2)),
        # Behind each of 2 SMMUs one device at each of 4 ITSes, one after the other.
        (spread(2, 4, 8), Shape(2, 8, 1, itses=4)),
        (spread(1, 14, 14), Shape(2, 27, 1, itses=14)),
    ],
)
def test_shape_for_the_devices_own_itses_has_each_of_them(load, sample, shape):
    scenario = load(sample)
    chosen = device_roles.shape_for(scenario, own_its=True)
    assert (chosen.itses, chosen.smmus) == (shape.itses, shape.smmus)
    assert chosen.covers(shape)
    assert shape.covers(chosen)


def test_devices_of_one_its_get_stand_ins_of_one_its(load):
    sample = Sample((Device(A, its=5), Device(B, its=3), Device("0000:03:00.0", its=5)))
    listed = agent_devices(("a", 1), ("a", 1), ("a", 1), ("a", 1))
    its_of = {at(f"0000:1{n}:00.0"): its for n, its in enumerate((0, 1, 0, 1))}
    parts = device_roles.assign(load(sample), listed, its_of.__getitem__)
    assert parts == {
        at(A): at("0000:11:00.0"),
        at(B): at("0000:10:00.0"),
        at("0000:03:00.0"): at("0000:13:00.0"),
    }
    # Any ITS will do.
    assert device_roles.assign(load(sample), listed)[at(A)] == at("0000:10:00.0")


def test_too_few_itses_are_refused(load):
    listed = agent_devices(("a", 1), ("a", 1))
    with pytest.raises(LabError, match=r"it has 1 ITS .* uses 2; use vmm-msi lab up --itses 2"):
        device_roles.assign(load(pair("own", pits=2)), listed, lambda _device: 0)


def test_group_of_two_itses_is_refused(load):
    devices = (Device("0000:01:00.0", group=7, its=0), Device("0000:01:00.1", group=7, its=1))
    with pytest.raises(UsageError, match="IOMMU group 7 has devices of 2 ITSes"):
        device_roles.shape_for(load(Sample(devices)), own_its=True)
    assert device_roles.shape_for(load(Sample(devices)), own_its=False)


def test_more_itses_than_the_lab_has_are_refused(load):
    scenario = load(spread(1, 17, 17))
    with pytest.raises(UsageError, match="up to 16 ITSes, the scenario uses 17"):
        device_roles.check(scenario, own_its=True)
    device_roles.check(scenario, own_its=False)


@pytest.mark.parametrize("own_its", [True, False])
def test_device_without_a_stand_in_is_refused(load, own_its):
    with pytest.raises(UsageError, match="has 2 StreamIDs"):
        device_roles.check(load(Sample((Device(A, extra="streams = 2"),))), own_its=own_its)


def test_device_with_several_vectors_has_a_stand_in(load):
    """Its first MSI stands for all: Linux gives them one address."""
    device_roles.check(load(Sample((Device(A, vectors=3),))), own_its=True)


def test_group_of_three_is_refused(load):
    devices = tuple(Device(f"0000:01:00.{n}", group=7) for n in range(3))
    with pytest.raises(UsageError, match="up to 2 of a group"):
        device_roles.shape_for(load(Sample(devices)), own_its=False)


def test_host_and_guest_are_decoded_unchanged(load):
    scenario = load(pair("own", pits=2))
    for kind, value in ((HostTopology, scenario.host), (GuestDomain, scenario.guest)):
        back = from_wire(kind, json.loads(json.dumps(to_wire(value))))
        assert back == value
    assert type(back.devices[0].giova) is Iova


addresses = st.integers(0, 2**64 - 1).map(Iova)
verdicts = st.builds(
    Verdict,
    device=st.just(at(A)),
    first=st.just(0),
    count=st.integers(1, 2048),
    outcome=st.sampled_from(Outcome),
    its=st.none() | st.integers(0, 7),
    expected_its=st.integers(0, 7),
    programmed=st.none() | addresses,
    errno=st.none() | st.integers(1, 133),
    reason=st.text(),
    trace=st.lists(st.builds(TraceStep, st.text(), st.just({"its": 3, "pa": None}))).map(tuple),
    lpi=st.none() | st.integers(8192, 2**24),
)


@given(verdicts)
def test_verdicts_are_decoded_unchanged(verdict):
    back = from_wire(Verdict, json.loads(json.dumps(to_wire(verdict))))
    assert back == verdict
    assert back.programmed is None or type(back.programmed) is Iova


@pytest.mark.parametrize("value", [None, 3, "text", [], {}, {"device": 3}, {"programmed": "x"}])
def test_malformed_verdict_is_refused(value):
    with pytest.raises(ValueError, match=r"Expected|missing|expected"):
        from_wire(Verdict, value)
