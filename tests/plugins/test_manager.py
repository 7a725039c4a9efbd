"""Load, name, disable and call plugins, with real pluggy."""

from __future__ import annotations

import dataclasses
import logging
from importlib.metadata import EntryPoint
from typing import Literal

import pytest
from plugins.sample_plugins import observer, selector, strategy, strategy_info
from scenarios import A, B, Device, Sample, pair

from vmm_msi.config import Choice
from vmm_msi.engine.compare import compare
from vmm_msi.errors import PluginError, UsageError
from vmm_msi.host.scenario import load_scenario
from vmm_msi.plugins import (
    Action,
    Options,
    PluginKind,
    S2Pool,
    smmu_of,
)
from vmm_msi.plugins import manager as manager_module
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.types import Outcome


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text(pair("own", pits=2).toml())
    return load_scenario(path)


def run(plugins, scenario, *choices):
    named = [Choice.parse(choice) for choice in choices]
    return list(compare(plugins, scenario, named, "first-in-group"))


def test_the_shipped_plugins_load():
    plugins = PluginManager.load()
    assert plugins.names(PluginKind.STRATEGY) == [
        "coerced",
        "direct",
        "host-cookie",
        "identity",
        "mapped-page",
        "multi-its",
        "placed",
        "preset",
        "window",
    ]
    assert plugins.names(PluginKind.ITS_SELECTOR) == ["first-in-group"]
    assert all(record.origin.startswith("vmm-msi ") for record in plugins.records())


def test_plugin_managers_share_nothing():
    one, two = PluginManager.load(), PluginManager.load()
    one.register(strategy("mine"))
    assert "mine" in one.names(PluginKind.STRATEGY)
    assert "mine" not in two.names(PluginKind.STRATEGY)


def test_a_disabled_plugin_is_listed_and_cannot_be_selected():
    plugins = PluginManager.load(disabled=["direct"])
    assert {r.name: r.state for r in plugins.records()}["direct"] == "disabled"
    with pytest.raises(UsageError, match=r"'direct'.*is disabled"):
        plugins.info("direct", PluginKind.STRATEGY)


def test_a_taken_name_is_an_error_that_names_both_origins():
    plugins = PluginManager.load()
    with pytest.raises(PluginError, match=r"other 1: the name 'direct' is taken by vmm-msi 0"):
        plugins.register(strategy("direct"), "other 1")


def test_a_plugin_that_was_refused_can_be_registered_when_it_is_complete():
    plugins = PluginManager.load()
    incomplete = strategy("late")
    prepare = incomplete.__dict__.pop("vmm_msi_prepare_msi")
    with pytest.raises(PluginError, match="vmm_msi_prepare_msi"):
        plugins.register(incomplete)
    incomplete.vmm_msi_prepare_msi = prepare
    assert plugins.register(incomplete).name == "late"


@pytest.fixture
def entry_points(monkeypatch):
    def install(*points):
        installed = [EntryPoint(name, value, "vmm_msi") for name, value in points]
        monkeypatch.setattr(manager_module, "entry_points", lambda *, group: installed)

    return install


DIRECT = ("direct", "vmm_msi_plugins.direct:Direct")


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        (
            [("bad", "no_such_module_anywhere")],
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_module_anywhere'",
        ),
        (
            [("bad", "one_package"), ("bad", "another_package")],
            "the name is given 2 times: by another_package and by one_package; uninstall one",
        ),
        (
            [("bad", "vmm_msi_plugins.identity:Identity")],
            "its name is 'identity', its entry point's is 'bad'; use one name for both",
        ),
        (
            [("bad", "vmm_msi_plugins.identity")],
            "no hook vmm_msi_describe; did you mean vmm_msi_plugins.identity:Identity?",
        ),
    ],
    ids=["import", "twice", "other name", "module of a class"],
)
def test_a_broken_plugin_is_skipped_with_a_warning_unless_it_is_wanted(
    points, problem, entry_points, caplog
):
    entry_points(*points, DIRECT)
    with caplog.at_level(logging.WARNING):
        plugins = PluginManager.load()
    origin = ", ".join(sorted(value for _name, value in points))
    message = f"plugin 'bad' ({origin}): {problem}"
    assert caplog.messages == [f"{message}; it is skipped"]
    states = {record.name: (record.state, record.problem) for record in plugins.records()}
    assert states == {"bad": ("broken", problem), "direct": ("loaded", "")}
    with pytest.raises(UsageError) as use:
        plugins.info("bad", PluginKind.STRATEGY)
    assert str(use.value) == f"strategy 'bad' ({origin}): is broken: {problem}"
    with pytest.raises(PluginError) as load:
        PluginManager.load(wanted=["bad"])
    assert str(load.value) == message


def test_a_module_that_exits_is_a_broken_plugin(entry_points, tmp_path, monkeypatch):
    (tmp_path / "module_that_exits.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    entry_points(("exits", "module_that_exits"), DIRECT)
    states = {record.name: record.state for record in PluginManager.load().records()}
    assert states == {"exits": "broken", "direct": "loaded"}


def test_options_are_checked_against_the_declared_type():
    plugins = PluginManager.load()
    assert plugins.options("coerced", [("revision", "v8")]).revision == "v8"
    with pytest.raises(
        UsageError, match=r"'revison'; did you mean revision\? valid: revision, profile"
    ):
        plugins.options("coerced", [("revison", "v8")])
    with pytest.raises(UsageError, match=r"valid: revision: v15 \| v2 \| v4 \| v8"):
        plugins.options("coerced", [("revision", "v9")])
    with pytest.raises(UsageError, match="no such plugin; did you mean coerced"):
        plugins.options("cooerced", [])


def test_only_the_selected_strategy_is_called(scenario):
    called = []

    def attach(session, device):
        called.append(session.strategy)
        session.state(S2Pool).attach(session, device, smmu_of(session, device))

    plugins = PluginManager.load()
    plugins.register(strategy("one", vmm_msi_attach_device=attach))
    plugins.register(strategy("two", vmm_msi_attach_device=attach))
    run(plugins, scenario, "two")
    assert called == ["two", "two"]
    run(plugins, scenario, "identity")
    assert called == ["two", "two"]


def test_every_strategy_hook_is_called_in_the_documented_order(scenario):
    calls = []

    def record(name, result=None, real=None):
        def hook(session, device):
            calls.append((name, device.bus))
            return real(session, device) if real is not None else result

        return hook

    shipped = strategy("real")
    one = strategy(
        "spy",
        vmm_msi_plan_domain=lambda session: calls.append(("plan", 0)),
        vmm_msi_attach_domain=lambda session: calls.append(("attach_domain", 0)),
        vmm_msi_detach_domain=lambda session: calls.append(("detach_domain", 0)),
        vmm_msi_attach_device=record("attach", real=shipped.vmm_msi_attach_device),
        vmm_msi_bind_doorbell=record("bind"),
        vmm_msi_prepare_msi=record("prepare", real=shipped.vmm_msi_prepare_msi),
        vmm_msi_unbind_doorbell=record("unbind"),
        vmm_msi_detach_device=record("detach", real=shipped.vmm_msi_detach_device),
    )
    plugins = PluginManager.load()
    plugins.register(one)
    run(plugins, scenario, "spy")
    assert calls == [
        ("attach_domain", 0),
        ("attach", 1),
        ("bind", 1),
        ("prepare", 1),
        ("attach", 2),
        ("bind", 2),
        ("prepare", 2),
        ("unbind", 1),
        ("detach", 1),
        ("unbind", 2),
        ("detach", 2),
        ("detach_domain", 0),
    ]


@pytest.mark.parametrize("hook", ["attach_device", "bind_doorbell", "prepare_msi"])
def test_a_strategy_that_raises_is_named(hook, scenario):
    def broken(session, device):
        raise KeyError("oops")

    plugins = PluginManager.load()
    plugins.register(strategy("broken", **{f"vmm_msi_{hook}": broken}))
    with pytest.raises(PluginError, match=r"strategy broken: .* failed with KeyError: 'oops'"):
        run(plugins, scenario, "broken")


def test_a_veto_refuses_one_device_and_not_the_other(scenario):
    def veto(event):
        if event.action is Action.BIND_DOORBELL and str(event.device) == A:
            return "not on a Sunday"
        return None

    plugins = PluginManager.load()
    plugins.register(observer("policy", vmm_msi_veto=veto))
    (result,) = run(plugins, scenario, "identity")
    first, second = result.verdicts
    assert first.outcome is Outcome.REFUSED
    assert "bind-doorbell of 0000:01:00.0: vetoed by policy: not on a Sunday" in first.reason
    assert second.outcome is Outcome.DELIVERED


def test_a_veto_hook_that_raises_blocks_the_action(scenario):
    def broken(event):
        raise KeyError("oops")

    plugins = PluginManager.load()
    plugins.register(observer("policy", vmm_msi_veto=broken))
    with pytest.raises(PluginError, match=r"observer policy: its veto on .* failed with KeyError"):
        run(plugins, scenario, "identity")


def test_an_observer_that_implements_a_strategy_hook_is_not_called_for_it(scenario):
    called = []

    def attach(session, device):
        called.append(device)

    plugins = PluginManager.load()
    hooks = {"vmm_msi_attach_device": attach, "vmm_msi_observe": lambda event: None}
    plugins.register(observer("nosy", **hooks))
    (result,) = run(plugins, scenario, "identity")
    assert called == []
    assert {v.outcome for v in result.verdicts} == {Outcome.DELIVERED}


def test_disabling_an_unknown_plugin_is_an_error():
    with pytest.raises(
        UsageError, match=r"'drect': no such plugin; did you mean direct\? valid: coerced"
    ):
        PluginManager.load(disabled=["drect"])


def test_observers_see_every_action_and_the_refusals(scenario, caplog):
    seen = []

    def fails(event):
        raise ValueError("observer is broken")

    plugins = PluginManager.load()
    plugins.register(observer("a-fails", vmm_msi_observe=fails))
    plugins.register(observer("b-sees", vmm_msi_observe=lambda event: seen.append(event)))
    with caplog.at_level(logging.WARNING):
        (result,) = run(plugins, scenario, "direct")
    assert "observer a-fails failed" in caplog.text
    assert [v.outcome for v in result.verdicts] == [Outcome.DELIVERED, Outcome.REFUSED]
    assert [(e.action, str(e.device)) for e in seen if not e.error] == [
        (Action.ATTACH_DOMAIN, "None"),
        (Action.ATTACH_DEVICE, A),
        (Action.BIND_DOORBELL, A),
        (Action.PREPARE_MSI, A),
        (Action.ATTACH_DEVICE, B),
        (Action.DETACH_DEVICE, B),
        (Action.UNBIND_DOORBELL, A),
        (Action.DETACH_DEVICE, A),
        (Action.DETACH_DOMAIN, "None"),
    ]
    (failed,) = [e for e in seen if e.error]
    assert (failed.action, str(failed.device)) == (Action.BIND_DOORBELL, B)
    assert "conflict" in failed.error
    prepared = next(e for e in seen if e.action is Action.PREPARE_MSI)
    assert prepared.values == {"programmed_iova": "0xfffff040"}


def test_the_its_selector_is_called_and_none_means_the_first_its(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text(Sample((Device(A, its_group=(0, 1)), Device(B, its_group=(0, 1)))).toml())
    scenario = load_scenario(path)
    plugins = PluginManager.load()
    plugins.register(selector("last", lambda device: device.its_group[-1]))
    plugins.register(selector("none", lambda device: None))
    plugins.register(selector("wrong", lambda device: 7))
    choices = [Choice.parse("direct:profile=series-v16")]
    outcome = {
        name: {v.outcome for v in next(compare(plugins, scenario, choices, name)).verdicts}
        for name in ("first-in-group", "last", "none")
    }
    assert outcome == {
        "first-in-group": {Outcome.DELIVERED},
        "last": {Outcome.MISROUTED},
        "none": {Outcome.DELIVERED},
    }
    (wrong,) = compare(plugins, scenario, choices, "wrong")
    assert "ITS selector wrong names ITS 7" in wrong.verdicts[0].reason
    with pytest.raises(UsageError, match="its-selector 'no-such'"):
        list(compare(plugins, scenario, choices, "no-such"))


def test_an_its_selector_that_raises_is_named(scenario):
    def broken(device):
        raise KeyError("oops")

    plugins = PluginManager.load()
    plugins.register(selector("broken", broken))
    message = (
        r"ITS selector broken: selecting the ITS of 0000:01:00\.0 failed with KeyError: 'oops'"
    )
    with pytest.raises(PluginError, match=message):
        list(compare(plugins, scenario, [Choice.parse("direct")], "broken"))


def test_a_missing_capability_is_refused_in_advance(scenario):
    (result,) = run(PluginManager.load(), scenario, "identity:profile=series-v15")
    assert {v.outcome for v in result.verdicts} == {Outcome.REFUSED}
    assert "lacks sw-msi;" in result.verdicts[0].reason
    assert result.costs.s2_domains == 0


def test_a_hw_msi_region_refuses_every_strategy(tmp_path):
    extra = 'reserved = [{ base = 0xfee00000, size = 0x100000, type = "hw-msi" }]'
    path = tmp_path / "scenario.toml"
    path.write_text(Sample((Device(A, extra=extra),)).toml())
    scenario = load_scenario(path)
    plugins = PluginManager.load()
    for name in plugins.names(PluginKind.STRATEGY):
        (result,) = run(plugins, scenario, name)
        assert "bypass the SMMU" in result.verdicts[0].reason


def test_an_iommu_group_on_two_itses_is_refused_by_multi_its(tmp_path):
    devices = (Device(A, group=5), Device(B, its=1, group=5))
    path = tmp_path / "scenario.toml"
    path.write_text(Sample(devices).toml())
    (result,) = run(PluginManager.load(), load_scenario(path), "multi-its")
    assert [v.outcome for v in result.verdicts] == [Outcome.DELIVERED, Outcome.REFUSED]
    assert "IOMMU group 5 shares one translation" in result.verdicts[1].reason


class Coloured(Options, frozen=True):
    colour: Literal["red", "blue"] = "red"
    size: int = 3


def test_an_option_of_literals_makes_a_form_of_each():
    info = dataclasses.replace(strategy_info("paint"), options=Coloured)
    plugins = PluginManager.load()
    plugins.register(strategy("paint", vmm_msi_describe=lambda: info))
    assert [str(choice) for choice in plugins.choices()] == [
        "coerced:revision=v2",
        "coerced:revision=v4",
        "coerced:revision=v8",
        "coerced:revision=v15",
        "direct",
        "host-cookie",
        "identity",
        "mapped-page:mode=vits",
        "mapped-page:mode=s2",
        "multi-its:mode=s2",
        "multi-its:mode=vits",
        "multi-its:mode=vsmmu",
        "paint:colour=red",
        "paint:colour=blue",
        "placed",
        "preset",
        "window",
    ]
