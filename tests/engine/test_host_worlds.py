"""Hosts with a GICv5, a GICv2m, a pre-ITS, ITS groups with missing ITSes, and large pages."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scenarios import GIOVA_A, A, B, Device, Sample, pair, simulated_verdicts

from vmm_msi.errors import ScenarioError
from vmm_msi.host.scenario import parse_scenario
from vmm_msi.iommu.backend import MsiAllocator
from vmm_msi.iommu.profiles import profile_named
from vmm_msi.iommu.sim.backend import SimBackend
from vmm_msi.types import Iova, Ipa, Outcome, Pa, PciAddress

ITS_0 = "base = 0x200000000\n"
GICV5 = ITS_0 + "translate_frame = 0x200030000\n"
GICV2M = "base = 0x200001000\ngicv2m = true\n"
PRE_ITS = ITS_0 + "pre_its = 0x58000000\n"


def _scenario(its: str, sample: Sample | None = None):
    sample = pair("own") if sample is None else sample
    return parse_scenario(sample.toml().replace(ITS_0, its), "test")


@pytest.mark.parametrize(
    ("strategy", "profile", "addresses"),
    [
        ("direct", "linux-7.2-bind", [0xFFFF_F000, 0xFFFF_E000]),
        ("multi-its", "linux-7.2-bind", [0xFFFF_F000, 0xFFFF_E000]),
        ("coerced:revision=v8", "series-v8", [0xFFFF_F000, 0xFFFF_E000]),
        ("identity", "linux-7.2", [0x800_0000, 0x800_0000]),
    ],
)
@pytest.mark.parametrize("granule", ["4K", "64K"])
def test_the_offset_of_a_gicv5_doorbell_in_its_page_is_kept(strategy, profile, addresses, granule):
    """irq-gic-v5-its.c gicv5_its_compose_msi_msg, msi.h msi_msg_set_addr."""
    scenario = _scenario(GICV5, pair("own", granule=granule))
    assert scenario.host.itses[0].doorbell == 0x2_0003_0000
    verdicts = simulated_verdicts(scenario, strategy, profile)
    assert [(v.outcome, v.programmed) for v in verdicts] == [
        (Outcome.DELIVERED, address) for address in addresses
    ]


def test_a_giova_with_the_offset_of_the_guests_doorbell_misses_a_gicv5():
    scenario = _scenario(GICV5)
    backend = SimBackend(scenario.host, scenario.guest, profile_named("series-v16"))
    a = PciAddress.parse(A)
    s2 = backend.alloc_s2(0, allocator=MsiAllocator.CALLER)
    s2 = backend.attach(a, s2)
    backend.map_doorbell(s2, Ipa(0x0809_0000), 0)
    backend.program_msi(a, Iova(GIOVA_A + 0x40))
    verdict = backend.deliver(a)
    assert verdict.outcome is Outcome.MISROUTED
    assert verdict.reason == "0x200030040 is not an ITS doorbell"


@pytest.mark.parametrize(("its", "cause"), [(GICV2M, "is a GICv2m"), (PRE_ITS, "has a pre-ITS")])
@pytest.mark.parametrize(
    ("strategy", "profile"),
    [
        ("host-cookie", "linux-7.2"),
        ("identity", "linux-7.2"),
        ("direct", "linux-7.2-bind"),
        ("coerced:revision=v15", "linux-7.2-bind"),
        ("coerced:revision=v8", "series-v8"),
        ("identity", "series-v16"),
    ],
)
def test_a_device_whose_msis_are_not_isolated_is_not_bound(its, cause, strategy, profile):
    for verdict in simulated_verdicts(_scenario(its), strategy, profile):
        assert verdict.outcome is Outcome.REFUSED
        assert verdict.reason.startswith("EPERM: ")
        if profile.startswith("linux"):
            assert f"ITS 0 {cause}" in verdict.reason


@pytest.mark.parametrize("its", [GICV2M, PRE_ITS])
@pytest.mark.parametrize(
    ("module", "profile"), [("iommufd", "linux-7.2"), ("vfio_iommu_type1", "series-v16")]
)
def test_allow_unsafe_interrupts_of_the_module_in_use_is_required(its, module, profile):
    scenario = _scenario(its)
    for allowed in ("iommufd", "vfio_iommu_type1"):
        host = replace(scenario.host, unsafe_interrupts=frozenset({allowed}))
        verdicts = simulated_verdicts(replace(scenario, host=host), "identity", profile)
        expected = Outcome.DELIVERED if allowed == module else Outcome.REFUSED
        assert [v.outcome for v in verdicts] == [expected] * 2, allowed


def test_the_doorbell_of_a_gicv2m():
    assert _scenario(GICV2M).host.itses[0].doorbell == 0x2_0000_1040


def test_before_iommufd_one_its_without_isolation_refuses_all_devices():
    """irq_domain_check_msi_remap asks every MSI domain of the host."""
    sample = pair("own", pits=2)
    scenario = _scenario(PRE_ITS, sample)
    verdicts = simulated_verdicts(scenario, "coerced:revision=v8", "series-v8")
    assert [v.reason[:5] for v in verdicts] == ["EPERM", "EPERM"]
    a, b = simulated_verdicts(scenario, "identity", "linux-7.2")
    assert (a.reason[:5], b.outcome) == ("EPERM", Outcome.DELIVERED)


@pytest.mark.parametrize(
    ("strategy", "profile", "errno"),
    [
        ("identity", "linux-7.2", "EPERM"),
        ("direct", "linux-7.2-bind", "EPERM"),
        ("multi-its:mode=vsmmu", "linux-7.2", "EPERM"),
        ("direct", "series-v15", "ENODEV"),
        ("coerced:revision=v8", "series-v8", "ENODEV"),
    ],
)
def test_a_missing_first_its_of_a_group_is_not_replaced_by_the_second(strategy, profile, errno):
    """iort_dev_find_its_id takes index 0, and iort_get_device_domain tries no other."""
    devices = (Device(A, its_group=(5, 0)), Device(B, its_group=(0, 5), stage1="s1b"))
    text = Sample(devices).toml().replace("id = 5\nbase = 0x205000000\n", "id = 5\n")
    scenario = parse_scenario(text, "test")
    assert [its.id for its in scenario.host.itses] == [0]
    a, b = simulated_verdicts(scenario, strategy, profile)
    assert (a.outcome, b.outcome) == (Outcome.REFUSED, Outcome.DELIVERED)
    assert a.reason.startswith(f"{errno}: ")
    assert "ITS 5" in a.reason


@pytest.mark.parametrize("granule", ["4K", "16K", "64K"])
@pytest.mark.parametrize("strategy", ["direct", "identity"])
def test_a_host_page_has_the_translation_frame_and_not_the_control_frame(granule, strategy):
    """Linux maps the page of hDB; the control frame is the 64 KiB before it."""
    profile = "linux-7.2" if strategy == "identity" else "linux-7.2-bind"
    scenario = _scenario(ITS_0, pair("own", granule=granule))
    for verdict in simulated_verdicts(scenario, strategy, profile):
        assert verdict.outcome is Outcome.DELIVERED
        assert verdict.programmed is not None
        assert verdict.programmed & 0xFFF == 0x40
        steps = {step.step: step.values for step in verdict.trace}
        assert steps["s2"]["pa"] == str(Pa(0x2_0001_0040))


@pytest.mark.parametrize(
    ("its", "message"),
    [
        (GICV5 + "gicv2m = true\n", "host.its[0].gicv2m: an ITS with translate_frame has none"),
        ("gicv2m = true\n", "host.its[0].gicv2m: an ITS without base has none"),
        (
            ITS_0 + "translate_frame = 0x200031000\n",
            "translate_frame: 0x200031000 is not a multiple of 0x10000, the size of a 64 KiB frame",
        ),
        (
            "base = 0x200001800\ngicv2m = true\n",
            "host.its[0].base: 0x200001800 is not a multiple of 0x1000, the size of a GICv2m frame",
        ),
    ],
)
def test_contradictions_are_refused(its, message):
    with pytest.raises(ScenarioError) as refused:
        _scenario(its)
    assert str(refused.value).endswith(message)


def test_two_doorbells_in_one_frame_are_refused():
    text = pair("own", pits=2).toml()
    text = text.replace(ITS_0, ITS_0 + "translate_frame = 0x201010000\n")
    with pytest.raises(ScenarioError, match=r"host.its\[1\].base: 0x201000000 puts the doorbell "):
        parse_scenario(text, "test")
