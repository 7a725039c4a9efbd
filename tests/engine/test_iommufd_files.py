"""multi-its with an iommufd object for each vSMMU: a stage 2 and slots of its own for each."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from scenarios import GIOVA_A, A, B, Device, Sample, guest_run, pair, simulated_verdicts

from vmm_msi.config import Choice
from vmm_msi.engine.session import GuestSession
from vmm_msi.errors import BackendError, RefusedError, UsageError
from vmm_msi.host.scenario import parse_scenario
from vmm_msi.iommu.profiles import profile_named
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.types import Outcome, PciAddress

VSMMU, S2 = "multi-its:mode=vsmmu,iommufd=each", "multi-its:mode=s2,iommufd=each"
TWO = pair("own-same", pits=2)


def _scenario(sample: Sample):
    return parse_scenario(sample.toml(), "test")


def _backend(scenario, profile="linux-7.2", **more):
    return SimBackend(scenario.host, scenario.guest, profile_named(profile), **more)


def test_both_devices_have_the_first_slot():
    """As measured on QEMU 11.1 with two iommufd objects: 0x8000040 for both drives."""
    verdicts = simulated_verdicts(_scenario(TWO), VSMMU, "linux-7.2")
    assert [v.outcome for v in verdicts] == [Outcome.DELIVERED] * 2
    assert [v.its for v in verdicts] == [0, 1]
    assert [v.possible for v in verdicts] == [(0x8000040,), (0x8000040,)]


@pytest.mark.parametrize(
    ("strategy", "s2_domains", "slots"),
    [("multi-its:mode=vsmmu", 1, 2), (VSMMU, 2, 2), ("multi-its:mode=s2", 2, 0), (S2, 2, 0)],
)
def test_one_stage_2_per_smmu_and_iommufd_object(strategy, s2_domains, slots):
    scenario = _scenario(TWO)
    backend = _backend(scenario, "linux-7.2-bind" if "s2" in strategy else "linux-7.2")
    with guest_run(scenario, backend, strategy) as session:
        assert all(v.outcome is Outcome.DELIVERED for v in session.attach_and_deliver())
        costs = backend.costs()
    assert (costs.s2_domains, costs.sw_msi_slots) == (s2_domains, slots)


def test_one_gdb_leads_to_two_itses():
    verdicts = simulated_verdicts(_scenario(TWO), S2, "linux-7.2-bind")
    assert [(v.outcome, v.its, v.programmed) for v in verdicts] == [
        (Outcome.DELIVERED, 0, GIOVA_A + 0x40),
        (Outcome.DELIVERED, 1, GIOVA_A + 0x40),
    ]


@pytest.mark.parametrize("strategy", [VSMMU, S2])
def test_four_devices_of_two_itses_behind_two_smmus(strategy):
    devices = tuple(
        Device(f"0000:0{n}:00.0", its=n % 2, smmu=n // 2, stage1="s1a") for n in range(4)
    )
    scenario = _scenario(Sample(devices))
    backend = _backend(scenario, "linux-7.2-bind")
    with guest_run(scenario, backend, strategy) as session:
        plan = session.plan()
        verdicts = list(session.attach_and_deliver())
        assert backend.costs().s2_domains == 4
    assert [(v.smmu, v.its, v.own_iommufd) for v in plan.vsmmus] == [
        (0, 0, True), (0, 1, True), (1, 0, True), (1, 1, True)
    ]  # fmt: skip
    assert all(v.outcome is Outcome.DELIVERED for v in verdicts)


def test_an_iommu_group_is_bound_to_one_file():
    """The devices of a group that need two ITSes: the second is refused, by name."""
    devices = (Device(A, its=0, group=7), Device(B, its=1, group=7))
    verdicts = simulated_verdicts(_scenario(Sample(devices)), VSMMU, "linux-7.2")
    assert [v.outcome for v in verdicts] == [Outcome.DELIVERED, Outcome.REFUSED]
    assert "IOMMU group 7 shares one translation" in verdicts[1].reason


def test_a_group_of_one_its_shares_a_file():
    devices = (Device(A, group=7), Device(B, group=7))
    verdicts = simulated_verdicts(_scenario(Sample(devices)), VSMMU, "linux-7.2")
    assert [v.outcome for v in verdicts] == [Outcome.DELIVERED] * 2


def test_beside_a_device_of_another_strategy():
    """The guest's own file is that of the other device, which keeps the first slot there."""
    scenario = _scenario(TWO)
    backend = _backend(scenario)
    a, b = (PciAddress.parse(text) for text in (A, B))
    choices = {a: Choice.parse("identity"), b: Choice.parse(VSMMU)}
    session = GuestSession(
        PluginManager.load(), scenario.host, scenario.guest, backend, choices, "first-in-group"
    )
    before = backend.snapshot()
    with session:
        assert [(v.smmu, v.its, v.own_iommufd) for v in session.plan().vsmmus] == [
            (0, None, False),
            (0, 1, True),
        ]
        verdicts = list(session.attach_and_deliver())
        assert backend.costs().s2_domains == 2
    assert [v.possible for v in verdicts] == [(0x8000040,), (0x8000040,)]
    assert all(v.outcome is Outcome.DELIVERED for v in verdicts)
    assert backend.snapshot() == before


def test_devices_are_attached_again_after_a_detach():
    """Also with the guest's own file: a stage 2 that is freed gives its devices back."""
    scenario = _scenario(TWO)
    backend = _backend(scenario)
    before = backend.snapshot()
    for strategy in (VSMMU, "identity", VSMMU):
        with guest_run(scenario, backend, strategy) as session:
            verdicts = list(session.attach_and_deliver())
        assert all(v.outcome is Outcome.DELIVERED for v in verdicts)
        assert backend.snapshot() == before


@pytest.mark.parametrize("step", range(1, 9))
def test_a_step_that_fails_leaves_nothing(step):
    scenario = _scenario(TWO)
    backend = _backend(scenario, fail_at=step)
    before = backend.snapshot()
    with guest_run(scenario, backend, VSMMU) as session:
        try:
            list(session.attach_and_deliver())
        except BackendError as error:
            assert error.errno == errno.ENOMEM  # noqa: PT017 - only if it is raised
    assert backend.snapshot() == before


def test_an_attached_group_does_not_change_its_file():
    scenario = _scenario(pair("shared"))
    devices = tuple(replace(device, iommu_group=7) for device in scenario.host.devices)
    scenario = replace(scenario, host=replace(scenario.host, devices=devices))
    backend = _backend(scenario)
    a, b = (device.host for device in scenario.guest.devices)
    backend.attach(a, backend.alloc_s2(0))
    with pytest.raises(BackendError, match="another file descriptor owns") as error:
        backend.alloc_s2(0, own_file=b)
    assert error.value.errno == errno.EPERM


def test_mode_vits_has_one_stage_2():
    with pytest.raises(UsageError, match="use mode=s2 or mode=vsmmu"):
        guest_run(_scenario(TWO), _backend(_scenario(TWO)), "multi-its:mode=vits,iommufd=each")


def test_a_kernel_without_iommufd_is_refused():
    scenario = _scenario(TWO)
    with pytest.raises(RefusedError, match="lacks iommufd-files"):
        guest_run(scenario, _backend(scenario, "series-v8"), S2)
