"""The strategy ``placed`` in the simulator: where the guest's doorbell must be."""

from __future__ import annotations

import pytest
from scenarios import A, B, Device, Sample, pair

from vmm_msi.config import Choice
from vmm_msi.engine.compare import compare
from vmm_msi.host.scenario import load_scenario
from vmm_msi.plugins.manager import PluginManager

#: The first slot of the MSI window is at 0x8000000: the base of a virtual ITS whose doorbell is.
FIRST = 0x07FF_0000


@pytest.fixture
def placed(tmp_path):
    def placed(sample):
        path = tmp_path / "scenario.toml"
        path.write_text(sample.toml())
        choice = Choice.parse("placed")
        (result,) = compare(PluginManager.load(), load_scenario(path), [choice], "first-in-group")
        return {str(verdict.device): verdict for verdict in result.verdicts}

    return placed


def outcomes(verdicts):
    return {device: verdict.outcome.value for device, verdict in verdicts.items()}


def test_the_guests_own_giova_is_programmed_where_the_doorbell_is_at_the_slot(placed):
    verdicts = placed(Sample(pair("own").devices, vits_bases={0: FIRST}))
    assert outcomes(verdicts) == {A: "delivered", B: "delivered"}
    assert [verdict.programmed for verdict in verdicts.values()] == [0xFFFF_F040, 0xFFFF_E040]


def test_a_doorbell_elsewhere_is_refused_with_the_valid_address(placed):
    verdicts = placed(pair("own"))
    assert outcomes(verdicts) == {A: "refused", B: "refused"}
    assert "the guest has its own at 0x8090000" in verdicts[A].reason
    assert verdicts[A].reason.endswith("put the virtual ITS at 0x7ff0000")


@pytest.mark.parametrize("granule", ["4K", "64K"])
def test_a_second_virtual_its_does_not_fit_beside_the_first(granule, placed):
    devices = (Device(A, giova=0xFFFF_0000), Device(B, its=1, vits=1, giova=0xFFFE_0000))
    bases = {0: FIRST, 1: 0x080A_0000}
    verdicts = placed(Sample(devices, granule=granule, s1_granule=granule, vits_bases=bases))
    assert outcomes(verdicts) == {A: "delivered", B: "refused"}
    assert verdicts[B].reason.endswith("does not fit there: assign devices of one host ITS only")


def test_one_stage_1_granule_larger_than_the_slot_is_placed_by_its_offset(placed):
    sample = Sample((Device(A, giova=0xFFFF_0000),), s1_granule="64K", vits_bases={0: FIRST})
    assert outcomes(placed(sample)) == {A: "delivered"}
