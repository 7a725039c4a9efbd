"""The base classes: what a strategy, a selector and an observer do without overriding anything."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap

import pytest
from scenarios import A, B, pair

from vmm_msi.config import Choice
from vmm_msi.engine.compare import compare
from vmm_msi.host.scenario import load_scenario
from vmm_msi.plugins import (
    Capability,
    Event,
    ItsSelector,
    Needs,
    Observer,
    Options,
    PluginKind,
    S2Pool,
    Session,
    Strategy,
    hookimpl,
    hookspecs,
)
from vmm_msi.plugins.contract import HOOKS
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.types import PciAddress


class Plain(Strategy):
    """What the base class does, under another name."""

    name = "plain"
    summary = "the defaults"

    def needs(self, _options: Options) -> Needs:
        return Needs(interface=Capability.SW_MSI, capabilities=frozenset({Capability.SW_MSI}))


class S2PerDevice(Plain):
    """One override, two levels below the base class."""

    name = "s2-per-device"

    def vmm_msi_attach_device(self, session: Session, device: PciAddress) -> None:
        session.state(S2Pool).attach(session, device, device)


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text(pair("own").toml())
    scenario = load_scenario(path)

    def run(plugins, choice):
        (result,) = compare(plugins, scenario, [Choice.parse(choice)], "first-in-group")
        return result

    return run


@pytest.mark.parametrize("registered", [Plain, Plain()], ids=["class", "instance"])
def test_the_defaults_are_those_of_host_cookie(registered, run):
    plugins = PluginManager.load()
    info = plugins.register(registered)
    assert (info.name, info.kind, info.summary) == ("plain", PluginKind.STRATEGY, "the defaults")
    plain, shipped = run(plugins, "plain"), run(plugins, "host-cookie")
    assert (plain.verdicts, plain.costs) == (shipped.verdicts, shipped.costs)


def test_an_override_needs_no_mark(run):
    plugins = PluginManager.load()
    plugins.register(Plain)
    plugins.register(S2PerDevice)
    assert run(plugins, "plain").costs.s2_domains == 1
    assert run(plugins, "s2-per-device").costs.s2_domains == 2


def test_an_override_keeps_its_own_mark():
    class Marked(Plain):
        @hookimpl(tryfirst=True)
        def vmm_msi_attach_domain(self, session): ...

    assert Marked.vmm_msi_attach_domain.vmm_msi_impl["tryfirst"]


def test_one_class_can_be_registered_under_several_names(run):
    class Named(Plain):
        def __init__(self, name):
            self.name = name

    plugins = PluginManager.load()
    for name in ("one", "two"):
        plugins.register(Named(name))
    assert run(plugins, "one").verdicts == run(plugins, "two").verdicts


def test_a_selector_and_an_observer(run):
    class Last(ItsSelector):
        name = "last"

        def vmm_msi_select_its(self, device, host):
            return device.its_group[-1]

    class Audit(Observer):
        name = "audit"

        def __init__(self):
            self.devices = []

        def vmm_msi_observe(self, event: Event) -> None:
            self.devices.append(event.device)

    plugins, audit = PluginManager.load(), Audit()
    assert plugins.register(Last).kind is PluginKind.ITS_SELECTOR
    assert plugins.register(audit).kind is PluginKind.OBSERVER
    run(plugins, "identity")
    assert set(audit.devices) == {None, PciAddress.parse(A), PciAddress.parse(B)}


# The contract.


def test_the_base_class_implements_every_strategy_hook():
    strategy_hooks = {
        name for name, parameters in HOOKS.items() if parameters[:1] == ("session",)
    } | {"vmm_msi_describe"}
    implemented = {name for name in dir(Strategy) if name.startswith("vmm_msi_")}
    assert implemented == strategy_hooks


@pytest.mark.parametrize("base", [Strategy, ItsSelector, Observer])
def test_base_classes_have_the_parameters_of_the_specification(base):
    for name, function in inspect.getmembers(base, inspect.isfunction):
        if name.startswith("vmm_msi_"):
            assert tuple(inspect.signature(function).parameters) == ("self", *HOOKS[name])


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_an_example_that_implements_it(hook):
    docstring = inspect.cleandoc(getattr(hookspecs, hook).__doc__)
    example = textwrap.dedent(
        re.search(r"^Example.*::\n\n(.*)", docstring, re.MULTILINE | re.DOTALL)[1]
    )
    (function,) = ast.parse(example).body
    assert function.name == hook
    parameters = [argument.arg for argument in function.args.args]
    assert parameters in ([*HOOKS[hook]], ["self", *HOOKS[hook]])


WRONG_SIGNATURE = """
from vmm_msi.plugins import Iova, Needs, Options, PciAddress, Session, Strategy

class Wrong(Strategy):
    def needs(self, options: Options) -> Needs: ...
    def vmm_msi_bind_doorbell(self, session: Session, device: PciAddress) -> bool:
        return True
    def vmm_msi_prepare_msi(self, session: Session) -> Iova:
        return Iova(0)
"""


def test_mypy_checks_the_signatures_of_an_override(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(WRONG_SIGNATURE)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = {line.split(":")[1] for line in done.stdout.splitlines() if "[override]" in line}
    assert lines == {"6", "8"}, done.stdout
