"""Guests that do not translate in stage 1, and a guest that uses VFIO inside."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenarios import B, pair, simulated_verdicts

from vmm_msi.errors import InputError, ScenarioError
from vmm_msi.host.scenario import parse_scenario
from vmm_msi.iommu.linux.abilities import Doorbells
from vmm_msi.iommu.linux.backend import IommufdBackend
from vmm_msi.iommu.profiles import profile_named
from vmm_msi.types import Iova, Outcome, Stage1Mode

FINDING = Path(__file__).parents[2] / "vmm_msi/doctor/findings/rmr-direct.md"
BYPASSED = [Stage1Mode.BYPASS, Stage1Mode.S1DSS_BYPASS]


def _toml(config: str, *, honours_rmr: bool = True, drop_giova: bool = True, **more: object) -> str:
    text = pair("own-same", honours_rmr=honours_rmr, **more).toml()
    for name in ("s1a", "s1b"):
        text = text.replace(f'id = "{name}"\n', f'id = "{name}"\nconfig = "{config}"\n')
    return text.replace("giova = 0xfffff000\n", "") if drop_giova else text


def _verdicts(text: str, strategy: str, profile: str):
    return simulated_verdicts(parse_scenario(text, "test"), strategy, profile)


@pytest.mark.parametrize("config", BYPASSED)
@pytest.mark.parametrize("pits", [1, 2])
@pytest.mark.parametrize("honours_rmr", [True, False])
@pytest.mark.parametrize("strategy", ["host-cookie", "identity", "multi-its:mode=vsmmu"])
def test_the_kernels_own_address_is_delivered_where_stage_1_is_bypassed(
    config, pits, honours_rmr, strategy
):
    text = _toml(config, honours_rmr=honours_rmr, pits=pits)
    verdicts = _verdicts(text, strategy, "linux-7.2")
    assert [v.outcome for v in verdicts] == [Outcome.DELIVERED] * 2
    assert [v.programmed for v in verdicts] == [0x800_0040, 0x800_0040 + 0x1000 * (pits - 1)]
    step = verdicts[0].trace[1]
    assert (step.step, step.values["config"], step.values["ipa"]) == ("s1", config, "0x8000040")


@pytest.mark.parametrize("config", BYPASSED)
@pytest.mark.parametrize(
    ("strategy", "profile"),
    [
        ("direct", "linux-7.2-bind"),
        ("multi-its", "linux-7.2-bind"),
        ("coerced:revision=v15", "linux-7.2-bind"),
        ("coerced:revision=v8", "series-v8"),
        ("coerced:revision=v2", "series-v1"),
    ],
)
def test_the_guest_takes_gdb_itself_where_stage_1_is_bypassed(config, strategy, profile):
    for verdict in _verdicts(_toml(config), strategy, profile):
        assert verdict.outcome is Outcome.DELIVERED
        assert verdict.programmed == 0x809_0040


@pytest.mark.parametrize("config", BYPASSED)
@pytest.mark.parametrize("strategy", ["direct", "coerced:revision=v15"])
def test_another_giova_reaches_stage_2_untranslated(config, strategy):
    for verdict in _verdicts(_toml(config, drop_giova=False), strategy, "linux-7.2-bind"):
        assert verdict.outcome is Outcome.S2_FAULT
        assert verdict.trace[1].values["ipa"] == "0xfffff040"


def test_placed_is_delivered_where_stage_1_is_bypassed():
    text = _toml("bypass", vits_bases={0: 0x7FF_0000})
    for verdict in _verdicts(text, "placed", "linux-7.2"):
        assert (verdict.outcome, verdict.programmed) == (Outcome.DELIVERED, Iova(0x800_0040))


def _with_vfio(text: str) -> str:
    """Return a scenario in which VFIO in the guest uses B."""
    return text.removesuffix("\n") + "\nvfio = true\n"


@pytest.mark.parametrize("strategy", ["identity", "multi-its:mode=vsmmu"])
def test_vfio_in_the_guest_refuses_a_device_because_of_the_rmr(strategy):
    a, b = _verdicts(_with_vfio(pair("own").toml()), strategy, "linux-7.2")
    assert (a.outcome, b.outcome) == (Outcome.DELIVERED, Outcome.REFUSED)
    assert b.reason.startswith(f"EINVAL: {B}: VFIO in the guest refuses it")
    assert "direct region" in b.reason
    assert "EINVAL" in FINDING.read_text()


def test_vfio_in_a_guest_that_ignores_the_rmr_takes_the_device():
    text = _with_vfio(pair("own", honours_rmr=False).toml())
    verdicts = _verdicts(text, "identity", "linux-7.2")
    assert [v.outcome for v in verdicts] == [Outcome.S1_FAULT] * 2


@pytest.mark.parametrize(
    ("strategy", "profile", "outcome"),
    [
        ("host-cookie", "linux-7.2", Outcome.S2_FAULT),
        ("direct", "linux-7.2-bind", Outcome.DELIVERED),
    ],
)
def test_the_guests_own_window_begins_where_the_hosts_does(strategy, profile, outcome):
    text = _with_vfio(pair("own", giova_b=0x800_0000).toml())
    a, b = _verdicts(text, strategy, profile)
    assert a.outcome is (Outcome.S1_FAULT if strategy == "host-cookie" else Outcome.DELIVERED)
    assert (b.outcome, b.programmed) == (outcome, Iova(0x800_0040))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            _with_vfio(_toml("bypass")),
            "guest.device[1].vfio: VFIO in the guest translates, stage1 's1b' does not",
        ),
    ],
)
def test_contradictions_are_refused(text, message):
    with pytest.raises(ScenarioError) as refused:
        parse_scenario(text, "test")
    assert str(refused.value).endswith(message)


def test_a_real_kernel_refuses_a_stage_1_that_does_not_translate():
    scenario = parse_scenario(_toml("bypass"), "test")
    profile = profile_named("linux-7.2")
    with pytest.raises(
        InputError, match="stage 1 s1a: config bypass is available in the simulator"
    ):
        IommufdBackend(scenario.host, scenario.guest, Doorbells.WITNESS, profile)
