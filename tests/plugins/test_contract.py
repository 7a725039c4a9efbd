"""Mistakes of plugin authors: each is named, with its fix, and only the culprit is blamed."""

from __future__ import annotations

import dataclasses
import logging
import types
from typing import Annotated, Literal

import msgspec
import pytest
from plugins.sample_plugins import observer, plugin, selector, strategy, strategy_info
from scenarios import A, pair

from vmm_msi.config import Choice
from vmm_msi.engine.compare import compare
from vmm_msi.errors import PluginError, UsageError
from vmm_msi.host.scenario import load_scenario
from vmm_msi.plugins import (
    Needs,
    Observer,
    Options,
    PluginInfo,
    PluginKind,
    RefusedError,
    S2Pool,
    Strategy,
    smmu_of,
)
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.types import Outcome


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text(pair("own").toml())
    return load_scenario(path)


def unmarked(name):
    module = strategy("x")
    setattr(module, name, lambda: None)
    return module


def without(name):
    module = strategy("x")
    delattr(module, name)
    return module


def describes(**fields):
    return strategy("x", vmm_msi_describe=lambda: dataclasses.replace(strategy_info("x"), **fields))


class ListOption(Options, frozen=True):
    pages: list[int] = []  # noqa: RUF012


class NoDefault(Options, frozen=True):
    most: int


class Abstract(Strategy):
    name = "x"


class Typo(Strategy):
    name = "x"

    def needs(self, options):
        return strategy_info("x").needs(options)

    def vmm_msi_bind_dorbell(self, session, device): ...


KINDS = (
    "PluginKind.STRATEGY, PluginKind.ITS_SELECTOR, PluginKind.OBSERVER, PluginKind.DOCTOR_RULE, "
    "PluginKind.HOST_READER, PluginKind.REPORT_FORMAT"
)
NAMES = "letters, digits, '.', '_' and '-', the first a letter or a digit"
BROKEN = {
    "forgotten @hookimpl": (
        unmarked("vmm_msi_bind_doorbell"),
        (
            "vmm_msi_bind_doorbell lacks @hookimpl, so it would never be called; mark "
            "it with @hookimpl"
        ),
    ),
    "forgotten @hookimpl of a required hook": (
        unmarked("vmm_msi_prepare_msi"),
        (
            "vmm_msi_prepare_msi lacks @hookimpl, so it would never be called; mark "
            "it with @hookimpl"
        ),
    ),
    "missing description": (
        types.ModuleType("empty"),
        "no hook vmm_msi_describe",
    ),
    "missing required hook of a strategy": (
        without("vmm_msi_prepare_msi"),
        (
            "strategy without vmm_msi_prepare_msi; implement it, or derive from "
            "vmm_msi.plugins.Strategy"
        ),
    ),
    "missing required hook of a selector": (
        plugin(PluginInfo("x", PluginKind.ITS_SELECTOR, "none")),
        (
            "its-selector without vmm_msi_select_its; implement it, or derive from "
            "vmm_msi.plugins.ItsSelector"
        ),
    ),
    "missing hook of an observer": (
        observer("x"),
        (
            "observer without vmm_msi_veto or vmm_msi_observe; implement it, or "
            "derive from vmm_msi.plugins.Observer"
        ),
    ),
    "abstract class": (
        Abstract,
        "Abstract() failed with TypeError: ",
    ),
    "typo in a hook's name": (
        unmarked("vmm_msi_attach_devcie"),
        "unknown hook vmm_msi_attach_devcie; did you mean vmm_msi_attach_device?",
    ),
    "typo in a class": (
        Typo,
        "unknown hook vmm_msi_bind_dorbell; did you mean vmm_msi_bind_doorbell?",
    ),
    "typo in the description": (
        plugin(strategy_info("x"), vmm_msi_discribe=lambda: None),
        "unknown hook vmm_msi_discribe; did you mean vmm_msi_describe?",
    ),
    "unknown hook": (
        plugin(strategy_info("x"), vmm_msi_xyz=lambda: None),
        (
            "unknown hook vmm_msi_xyz; valid: vmm_msi_describe, vmm_msi_plan_domain, "
            "vmm_msi_attach_domain, vmm_msi_attach_device, vmm_msi_bind_doorbell, "
            "vmm_msi_prepare_msi, vmm_msi_unbind_doorbell, vmm_msi_detach_device, "
            "vmm_msi_detach_domain, vmm_msi_select_its, vmm_msi_veto, vmm_msi_observe, "
            "vmm_msi_examine, vmm_msi_finding_page, vmm_msi_read_host, vmm_msi_format_comparison"
        ),
    ),
    "typo in a parameter": (
        strategy("x", vmm_msi_attach_device=lambda sesion, device: None),
        (
            "vmm_msi_attach_device(sesion, device): unknown parameter 'sesion'; did "
            "you mean session?"
        ),
    ),
    "unknown parameter": (
        observer("x", vmm_msi_veto=lambda guest: None),
        "vmm_msi_veto(guest): unknown parameter 'guest'; valid: event",
    ),
    "wrong kind": (
        describes(kind="stratgy"),
        f"kind is 'stratgy'; valid: {KINDS}",
    ),
    "kind as text": (
        describes(kind="strategy"),
        f"kind is 'strategy'; valid: {KINDS}",
    ),
    "bad name": (
        describes(name="my strategy"),
        f"invalid name 'my strategy'; valid: {NAMES}",
    ),
    "no name": (
        describes(name=""),
        f"invalid name ''; valid: {NAMES}",
    ),
    "name of another type": (describes(name=7), "name is 7; valid: a str"),
    "option without a default": (
        describes(options=NoDefault),
        "NoDefault: each option must have a default that fits into JSON and can be hashed: ",
    ),
    "option that cannot be hashed": (
        describes(options=ListOption),
        "ListOption: each option must have a default that fits into JSON and can be hashed: ",
    ),
    "options of another type": (
        describes(options=dict),
        "options is <class 'dict'>; valid: a subclass of Options",
    ),
    "no needs": (
        describes(needs=None),
        "a strategy must describe its needs; valid: a function of the options",
    ),
    "needs of another type": (
        describes(needs=lambda _options: True),
        "needs(Options()) returned True; valid: a Needs",
    ),
    "needs that fail": (
        describes(needs=lambda options: options.mode),
        "needs(Options()) failed with AttributeError: ",
    ),
    "description of another type": (
        strategy("x", vmm_msi_describe=lambda: "x"),
        "vmm_msi_describe returned 'x'; valid: a PluginInfo",
    ),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_broken_plugin_cannot_be_registered(mistake):
    broken, problem = BROKEN[mistake]
    message = f"plugin {broken.__name__}: {problem}"
    plugins = PluginManager.load()
    before = plugins.records()
    with pytest.raises(PluginError) as error:
        plugins.register(broken)
    # What follows a colon is Python's or msgspec's.
    shown = str(error.value)
    assert shown.startswith(message) if problem.endswith(": ") else shown == message
    assert plugins.records() == before
    assert plugins.register(strategy("x")).name == "x"


# Options as users write them.


class Limits(Options, frozen=True):
    most: int = 1
    few: Annotated[int, msgspec.Meta(ge=1, lt=9)] = 1
    mode: Literal["fast", "slow"] | None = None
    strict: bool = False


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            ("moast", "2"),
            "unknown option 'moast'; did you mean most? valid: most, few, mode, strict, profile",
        ),
        (("most", "two"), "invalid value most='two'; valid: most: int"),
        (("few", "0"), "invalid value few='0'; valid: few: int >= 1 < 9"),
        (("mode", "Fast"), "invalid value mode='Fast'; valid: mode: fast | slow | none"),
        (("strict", 7), "invalid value strict=7; valid: strict: bool"),
    ],
    ids=str,
)
def test_an_option_that_is_unknown_or_has_a_wrong_value(option, message):
    plugins = PluginManager.load()
    plugins.register(describes(name="limits", options=Limits))
    with pytest.raises(UsageError) as error:
        plugins.options("limits", [("most", "3"), option])
    assert str(error.value) == f"strategy limits: {message}"


# Strategies that break when they run.


def run(scenario, broken, choice="x"):
    plugins = PluginManager.load()
    plugins.register(broken)
    return list(compare(plugins, scenario, [Choice.parse(choice)], "first-in-group"))


def alloc_only(session, device):
    session.backend.alloc_s2(smmu_of(session, device))


def attach_and_leak(session, device):
    alloc_only(session, device)
    session.state(S2Pool).attach(session, device, smmu_of(session, device))


def detach_only(session, device):
    session.backend.detach(device)


def leak_and_refuse(session, device):
    alloc_only(session, device)
    raise RefusedError("no")


FREE = "free it in vmm_msi_detach_device, and when vmm_msi_attach_device fails"
CALL = "call session.state(S2Pool).{0} or session.backend.{0}"


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        (
            {"attach_device": lambda: None},
            f"vmm_msi_attach_device did not attach {A}; {CALL.format('attach')}",
        ),
        (
            {"attach_device": alloc_only},
            f"vmm_msi_attach_device did not attach {A}; {CALL.format('attach')}",
        ),
        (
            {"attach_device": lambda: True},
            f"vmm_msi_attach_device did not attach {A}; {CALL.format('attach')}",
        ),
        (
            {"detach_device": lambda: None},
            f"vmm_msi_detach_device did not detach {A}; {CALL.format('detach')}",
        ),
        (
            {"prepare_msi": lambda: None},
            f"did not enable the MSIs of {A}: it returned None, not an Iova",
        ),
        (
            {"detach_device": detach_only},
            f"1 stage 2 table left after all devices were detached; {FREE}",
        ),
        (
            {"attach_device": attach_and_leak},
            f"2 stage 2 tables left after all devices were detached; {FREE}",
        ),
        (
            {"attach_device": leak_and_refuse},
            f"2 stage 2 tables left after all devices were detached; {FREE}",
        ),
    ],
    ids=[
        "attach does nothing",
        "attach only allocates",
        "attach returns True",
        "detach does nothing",
        "prepare does nothing",
        "detach leaks an S2",
        "attach leaks an S2",
        "refusal leaks an S2",
    ],
)
def test_a_strategy_that_breaks_is_blamed(scenario, hooks, message):
    broken = strategy("x", **{f"vmm_msi_{name}": hook for name, hook in hooks.items()})
    with pytest.raises(PluginError) as error:
        run(scenario, broken)
    assert str(error.value) == f"strategy x: {message}"


def test_a_stage_2_that_is_left_after_another_failure_is_a_note(scenario):
    with pytest.raises(PluginError, match="did not attach") as error:
        run(scenario, strategy("x", vmm_msi_attach_device=alloc_only))
    assert error.value.__notes__ == [
        (
            "detaching failed, too: strategy x: 1 stage 2 table left after all devices were "
            f"detached; {FREE}"
        )
    ]


class OtherAttach(Strategy):
    name = "x"

    def needs(self, options):
        return strategy_info("x").needs(options)

    def vmm_msi_attach_device(self, session, device):
        session.backend.attach(device, session.backend.alloc_s2(smmu_of(session, device)))


def test_a_strategy_that_attaches_without_the_pool_and_detaches_with_it(scenario):
    with pytest.raises(PluginError) as error:
        run(scenario, OtherAttach)
    assert str(error.value) == (
        f"strategy x: detach-device of {A} failed with LookupError: S2Pool did not attach {A}; a "
        "strategy that attaches in another way overrides vmm_msi_detach_device, too"
    )


def test_a_broken_strategy_that_was_not_named_is_skipped_with_a_warning(scenario, caplog):
    plugins = PluginManager.load()
    plugins.register(strategy("x", vmm_msi_attach_device=lambda: None))
    needs = Needs("no-such-capability", frozenset())
    plugins.register(describes(name="y", needs=lambda _options: needs))
    choices = [Choice.parse(name) for name in ("x", "y", "identity")]
    with caplog.at_level(logging.WARNING):
        (result,) = compare(plugins, scenario, choices, "first-in-group", skip_broken=True)
    assert result.strategy == "identity"
    assert caplog.messages == [
        (
            f"strategy x: vmm_msi_attach_device did not attach {A}; {CALL.format('attach')}; it is "
            "skipped"
        ),
        "strategy y: no simulated kernel has no-such-capability; it is skipped",
    ]


# Observers that break.


def test_an_observer_that_returns_true_as_a_veto_is_blamed(scenario):
    class Policy(Observer):
        name = "policy"

        def vmm_msi_veto(self, event):
            return True

    with pytest.raises(PluginError) as error:
        run(scenario, Policy, "identity")
    assert str(error.value) == (
        "observer policy: vmm_msi_veto returned True for attach-domain of guest; valid: the reason "
        "as a str, or None to allow the action"
    )


def test_an_observer_that_returns_true_is_warned_of_and_changes_nothing(scenario, caplog):
    class Audit(Observer):
        name = "audit"

        def vmm_msi_observe(self, event):
            return True

    with caplog.at_level(logging.WARNING):
        (result,) = run(scenario, Audit, "identity")
    assert {verdict.outcome for verdict in result.verdicts} == {Outcome.DELIVERED}
    assert caplog.messages[0] == (
        "observer audit: vmm_msi_observe returned True at attach-domain; valid: None, a veto is a "
        "reason that vmm_msi_veto returns"
    )


def test_a_selector_that_returns_another_its_is_blamed(scenario):
    plugins = PluginManager.load()
    plugins.register(selector("wrong", lambda device: True))
    choices = [Choice.parse("direct")]
    (result,) = compare(plugins, scenario, choices, "wrong")
    assert "ITS selector wrong names ITS True" in result.verdicts[0].reason
