"""A guest in the simulator: its kernel, its host and its strategies."""

from __future__ import annotations

from dataclasses import replace

import pytest
from doctor.cases import HOST, A, B, function
from scenarios import pair

from vmm_msi.config import Choice
from vmm_msi.domxml.metadata import DeviceRecord, DomainRecord
from vmm_msi.domxml.template import nested_guest
from vmm_msi.engine.setup import (
    guest_with,
    profile_for,
    recorded_choices,
    simulate,
    with_reported_devices,
)
from vmm_msi.errors import RefusedError, TopologyError, UsageError
from vmm_msi.host.scenario import parse_scenario
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.types import SW_MSI_WINDOW, Ipa, Outcome, ReservedKind, ReservedRegion

PLUGINS = PluginManager.load()


def profile(*choices):
    return profile_for(PLUGINS, map(Choice.parse, choices)).name


def test_the_default_kernel_with_all_that_the_strategies_need():
    assert profile("identity", "multi-its:mode=vsmmu") == "linux-7.2"
    assert profile("coerced:revision=v2") == "linux-7.2-bind"
    assert profile("direct", "coerced:revision=v15") == "linux-7.2-bind"
    assert profile("identity", "coerced:revision=v2") == "linux-7.2-bind"


def test_a_proposed_kernel_is_chosen_by_its_interface_alone():
    assert profile("window") == "linux-sw-msi-option"
    assert profile("preset") == "linux-vfio-msi-iova"
    assert profile("mapped-page:mode=s2", "window", "identity") == "linux-map-msi-page"
    for strategy in ("host-cookie", "identity", "placed", "multi-its:mode=vsmmu"):
        assert profile(strategy) == "linux-7.2"


def test_strategies_without_a_common_kernel():
    with pytest.raises(RefusedError) as refusal:
        profile("preset", "coerced:revision=v8")
    assert str(refusal.value) == (
        "strategies coerced:revision=v8, preset: no simulated kernel can apply all of them at "
        "once; use one strategy for the whole guest"
    )


def test_the_kernel_that_a_strategy_names():
    assert profile("direct:profile=series-v8", "direct") == "series-v8"
    with pytest.raises(UsageError, match=r"unknown; did you mean linux-7\.2"):
        profile("direct:profile=linux-1.0")
    with pytest.raises(RefusedError, match="name two kernels"):
        profile("direct:profile=series-v8", "direct:profile=series-v15")


def test_reported_reserved_regions_complete_the_host():
    region = ReservedRegion(Ipa(0x1000_0000), 0x1000, ReservedKind.DIRECT)
    unknown = replace(HOST, devices=(), functions=())
    reported = {A: function(A, group=7, reserved=(SW_MSI_WINDOW, region))}
    routed = replace(unknown, devices=(HOST.device_by_address[A],))
    (device,) = with_reported_devices(routed, [A], reported).devices
    assert device.reserved == (SW_MSI_WINDOW, region)
    with pytest.raises(TopologyError, match=str(B)):
        with_reported_devices(routed, [B], reported)


def test_recorded_strategies_have_their_options():
    record = DeviceRecord(A, "multi-its", "sim", 3, 4, 0, 0, {"mode": "s2"})
    choices = recorded_choices(replace(DomainRecord(), devices=(record,)))
    assert choices == {A: Choice.parse("multi-its:mode=s2")}


def test_a_guest_has_the_given_devices_alone():
    xml = nested_guest("guest0", memory=1 << 30)
    guest = guest_with(xml, [A, B])
    assert [device.host for device in guest.devices] == [A, B]
    assert guest_with(xml, []).devices == ()


def test_a_simulation_has_a_verdict_for_refused_devices():
    scenario = parse_scenario(pair("shared", pits=2).toml(), "x")
    devices = [device.host for device in scenario.guest.devices]
    choices = dict.fromkeys(devices, Choice.parse("direct"))
    simulation = simulate(PLUGINS, scenario, choices, "first-in-group")
    assert simulation.kernel == "linux-7.2-bind"
    assert [verdict.outcome for verdict in simulation.verdicts] == [
        Outcome.DELIVERED,
        Outcome.REFUSED,
    ]
    assert [verdict.device for verdict in simulation.verdicts] == devices
