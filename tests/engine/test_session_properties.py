"""Properties of every strategy on every host and guest."""

from __future__ import annotations

import contextlib
import errno

import pytest
from depth import depth
from hypothesis import given, settings
from hypothesis import strategies as st
from random_scenarios import CHOICES, scenarios

from vmm_msi.config import Choice
from vmm_msi.domxml.guest_domain import virt_guest
from vmm_msi.engine.session import GuestSession
from vmm_msi.engine.setup import profile_for
from vmm_msi.errors import BackendError, RefusedError
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.types import (
    Costs,
    DeviceId,
    Granule,
    HostDevice,
    HostTopology,
    Its,
    Outcome,
    Pa,
    PciAddress,
    Scenario,
    Smmu,
    StreamId,
)

PLUGINS = PluginManager.load()
VSMMU = Choice.parse("multi-its:mode=vsmmu")
every_choice = pytest.mark.parametrize("choice", CHOICES, ids=str)


def open_session(scenario, choice, fail_at=0):
    backend = SimBackend(
        scenario.host, scenario.guest, profile_for(PLUGINS, [choice]), fail_at=fail_at
    )
    choices = {device.host: choice for device in scenario.guest.devices}
    session = GuestSession(
        PLUGINS, scenario.host, scenario.guest, backend, choices, "first-in-group"
    )
    return backend, session


@every_choice
@settings(max_examples=depth(60), deadline=None)
@given(scenario=scenarios())
def test_every_device_has_one_verdict_and_delivered_means_the_right_its(choice, scenario):
    backend, session = open_session(scenario, choice)
    verdicts = list(session.attach_and_deliver())
    assert [v.device for v in verdicts] == [d.host for d in scenario.guest.devices]
    for verdict in verdicts:
        device = scenario.host.device_by_address[verdict.device]
        assert verdict.count == device.vectors
        assert verdict.expected_its == device.its
        if verdict.outcome is Outcome.DELIVERED:
            # Judged by the physical address that was written to, not by the simulator's verdict.
            (doorbell,) = [s.values["pa"] for s in verdict.trace if s.step == "doorbell"]
            first = next(i for i in scenario.host.itses if i.id == device.its_group[0])
            assert doorbell == hex(first.base + 0x10040)
            assert verdict.its == first.id
            assert verdict.lpi is not None
        else:
            assert verdict.reason
    delivered = [v for v in verdicts if v.outcome is Outcome.DELIVERED]
    lpis = [v.lpi + i for v in delivered for i in range(v.count)]
    assert len(set(lpis)) == len(lpis)
    assert backend.stale() == []


@every_choice
@settings(max_examples=depth(25), deadline=None)
@given(scenario=scenarios())
def test_a_verdict_has_the_errno_that_the_caller_sees(choice, scenario):
    """No error number of iommufd's allocator, or of iommu_map for it, leaves the kernel."""
    backend, session = open_session(scenario, choice)
    if backend.info.profile.startswith("linux-"):
        for verdict in session.attach_and_deliver():
            assert verdict.errno not in {errno.ENOMEM, errno.EOVERFLOW, errno.ERANGE}
            if verdict.errno_inside is not None:
                assert verdict.errno in {errno.ENOSPC, errno.ENODEV}
        # A device that was refused and detached; a device of its IOMMU group may be attached.
        for device in scenario.guest.devices:
            if not backend.is_attached(device.host):
                assert errno_of(backend, device.host) in {0, errno.ENOSPC, errno.EINVAL}


def errno_of(backend, device):
    try:
        backend.prepare_msi(device)
    except BackendError as error:
        return error.errno
    return 0


@settings(max_examples=depth(200), deadline=None)
@given(scenario=scenarios())
@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("s2", "series-v15"),
        ("s2", "linux-7.2"),
        ("s2", "linux-7.2-bind"),
        ("vits", "series-v15"),
        ("vits", "linux-7.2"),
        ("vits", "linux-7.2-bind"),
        ("vsmmu", "linux-7.2"),
    ],
)
def test_multi_its_delivers_or_refuses(mode, profile, scenario):
    choice = Choice.parse(f"multi-its:mode={mode},profile={profile}")
    _backend, session = open_session(scenario, choice)
    assert {v.outcome for v in session.attach_and_deliver()} <= {Outcome.DELIVERED, Outcome.REFUSED}


def test_mode_vsmmu_refuses_a_device_without_a_slot_in_the_window():
    addresses = [PciAddress(0, bus, 0, 0) for bus in range(1, 18)]
    devices = tuple(
        HostDevice(a, 0, StreamId(i), (i,), DeviceId(i), i) for i, a in enumerate(addresses)
    )
    itses = tuple(Its(i, Pa(0x2_0000_0000 + i * 0x100_0000)) for i in range(17))
    host = HostTopology("test", Granule.K64, (Smmu(0),), itses, devices)
    _backend, session = open_session(Scenario(host, virt_guest("test", addresses)), VSMMU)
    verdicts = list(session.attach_and_deliver())
    assert [v.outcome for v in verdicts] == [Outcome.DELIVERED] * 16 + [Outcome.REFUSED]
    assert "with host pages of 64K it has room for 16 ITSes" in verdicts[-1].reason


@every_choice
@settings(max_examples=depth(60), deadline=None)
@given(scenario=scenarios(), data=st.data())
def test_detach_in_any_order_leaves_nothing(choice, scenario, data):
    backend, session = open_session(scenario, choice)
    before = backend.snapshot()
    list(session.attach_and_deliver())
    for device in data.draw(st.permutations([d.host for d in scenario.guest.devices])):
        session.detach(device)
        assert backend.stale() == []
    session.detach_all()
    assert backend.snapshot() == before
    costs = backend.costs()
    assert (costs.s2_domains, costs.s2_mappings, costs.bindings) == (0, 0, 0)
    backend.close()
    assert backend.costs() == Costs()


@every_choice
@settings(max_examples=depth(40), deadline=None)
@given(scenario=scenarios(max_devices=4))
def test_attach_is_all_or_nothing_at_every_failing_step(choice, scenario):
    backend, session = open_session(scenario, choice)
    with contextlib.suppress(RefusedError):
        session.attach_all()
    steps = backend.steps
    for step in range(1, steps + 1):
        backend, session = open_session(scenario, choice, fail_at=step)
        before = backend.snapshot()
        with pytest.raises(RefusedError):
            session.attach_all()
        assert backend.snapshot() == before
        assert backend.costs().s2_domains == 0
        assert backend.stale() == []
