"""A failure at any step keeps the old definition and raises an error of vmm-msi.

Failing calls of libvirt are in test_faults.py.
"""

from __future__ import annotations

import pytest
from provision.failing import failing_at, raising
from provision.helpers import A2, A, B, attach, detach, plan, texts

from vmm_msi.errors import HypervisorError, PluginError, RefusedError
from vmm_msi.plugins import Action, Observer
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.provision import apply_change
from vmm_msi.types import GuestPlan, VsmmuPlan
from vmm_msi_plugins.identity import Identity


def test_an_interrupt_restores_the_definition(connection):
    before = texts(connection)
    change = plan(connection, A)
    for at in range(1, 100):
        failing, calls = failing_at(connection, at, True, raising(KeyboardInterrupt()))
        try:
            apply_change(failing, change)
        except KeyboardInterrupt:
            assert texts(connection) == before
            continue
        assert calls[-2:] == ["defineXMLFlags", "XMLDesc"]
        assert len(calls) == at - 1
        return
    pytest.fail("there is no end of calls")


def refused_by_the_schema(new):
    (iommu,) = new.iommus()
    iommu.element.set("model", "made-up")


def refused_by_the_parser(new):
    *_rest, controller = new.controllers()
    controller.element.set("index", "0")


@pytest.mark.parametrize(
    ("spoil", "by_schema"),
    [(refused_by_the_schema, True), (refused_by_the_parser, False)],
)
def test_a_refused_definition_changes_nothing(connection, spoil, by_schema):
    attach(connection, A)
    before = texts(connection)
    change = plan(connection, A2)
    spoil(change.new)
    with pytest.raises(HypervisorError, match="defining guest guest0 at test:") as caught:
        apply_change(connection, change)
    assert str(caught.value).endswith("valid is what this libvirt's schemas allow") is by_schema
    assert texts(connection) == before


# Plugins that fail or object.


def strategy(name, **hooks):
    """Return the shipped identity strategy under another name, with some hooks replaced."""
    methods = {f"vmm_msi_{hook}": function for hook, function in hooks.items()}
    return type("Sample", (Identity,), {"name": name, **methods})


def with_plugin(plugin):
    plugins = PluginManager.load()
    plugins.register(plugin)
    return plugins


@pytest.mark.parametrize(
    "hook", ["plan_domain", "attach_domain", "attach_device", "bind_doorbell", "prepare_msi"]
)
@pytest.mark.parametrize("error", [KeyError("oops"), RefusedError("oops")], ids=["bug", "refusal"])
def test_a_strategy_that_fails(connection, hook, error):
    def fail(self):
        raise error

    plugins = with_plugin(strategy("failing", **{hook: fail}))
    before = texts(connection)
    kind = RefusedError if isinstance(error, RefusedError) else PluginError
    with pytest.raises(kind, match="oops"):
        attach(connection, A, B, strategy="failing", plugins=plugins)
    assert texts(connection) == before
    attach(connection, A)


@pytest.mark.parametrize(
    "vsmmus", [(), (VsmmuPlan(0, (A,)),), (VsmmuPlan(0, (A, B)), VsmmuPlan(1, (A,)))], ids=len
)
def test_a_plan_without_each_device_once(connection, vsmmus):
    plugins = with_plugin(strategy("careless", plan_domain=lambda self: GuestPlan(vsmmus)))
    before = texts(connection)
    with pytest.raises(PluginError, match="strategy careless"):
        attach(connection, A, B, strategy="careless", plugins=plugins)
    assert texts(connection) == before


class Watch(Observer):
    """Remembers events, and vetoes device B for a reason."""

    name = "watch"

    def __init__(self, seen, reason=None):
        self.seen = seen
        self.reason = reason

    def vmm_msi_observe(self, event):
        self.seen.append((event.action, event.device, event.strategy, bool(event.error)))

    def vmm_msi_veto(self, event):
        return self.reason if event.device == B else None


def test_observers_are_notified_of_applied_changes(connection):
    seen = []
    plugins = with_plugin(Watch(seen))
    change = plan(connection, A, B, plugins=plugins)
    assert seen == []
    apply_change(connection, change, plugins)
    assert seen == [(Action.ATTACH_DEVICE, device, "identity", False) for device in (A, B)]
    seen.clear()
    detach(connection, B, plugins=plugins)
    detach(connection, plugins=plugins)
    assert seen == [(Action.DETACH_DEVICE, device, "identity", False) for device in (B, A)]


def test_observers_are_notified_of_failures(connection):
    seen = []
    plugins = with_plugin(Watch(seen))
    change = plan(connection, A, plugins=plugins)
    refused_by_the_schema(change.new)
    with pytest.raises(HypervisorError):
        apply_change(connection, change, plugins)
    assert seen == [(Action.ATTACH_DEVICE, A, "identity", True)]


def test_a_veto_of_one_device_refuses_all(connection):
    seen = []
    plugins = with_plugin(Watch(seen, "B is broken"))
    before = texts(connection)
    with pytest.raises(RefusedError, match=r"of 0001:01:00\.0: vetoed by watch: B is broken"):
        attach(connection, A, B, plugins=plugins)
    assert texts(connection) == before
    assert seen == []
    attach(connection, A, plugins=plugins)
    assert [action for action, *_rest in seen] == [Action.ATTACH_DEVICE]
