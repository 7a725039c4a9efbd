"""Which strategies deliver every MSI of a guest, and which QEMU applies."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from plugins.sample_plugins import strategy
from scenarios import A, pair

from vmm_msi.engine.survey import delivering, on_qemu
from vmm_msi.host.scenario import parse_scenario
from vmm_msi.plugins import Capability, Needs
from vmm_msi.plugins.manager import PluginManager

SELECTOR = "first-in-group"


@pytest.fixture
def plugins():
    return PluginManager.load()


def scenario(**options):
    return parse_scenario(pair("own", **options).toml(), "x")


def names(choices):
    return [str(choice) for choice in choices]


def test_strategies_that_qemu_applies_come_first(plugins):
    deliveries = delivering(plugins, scenario(pits=2), SELECTOR)
    assert names(delivery.choice for delivery in deliveries) == [
        "identity",
        "multi-its:mode=vsmmu",
        "multi-its:mode=s2",
        "window",
        "mapped-page:mode=s2",
    ]
    assert [delivery.needs.qemu for delivery in deliveries] == [True, True, False, False, False]
    assert [delivery.kernel for delivery in deliveries] == [
        "linux-7.2",
        "linux-7.2",
        "linux-7.2-bind",
        "linux-sw-msi-option",
        "linux-map-msi-page",
    ]
    assert [delivery.standing for delivery in deliveries] == [
        "",
        "",
        "in no release",
        "proposed, not merged",
        "sketched, no patch posted",
    ]


def test_a_guest_that_ignores_the_rmr(plugins):
    deliveries = delivering(plugins, scenario(pits=2, honours_rmr=False), SELECTOR)
    assert names(delivery.choice for delivery in deliveries) == [
        "multi-its:mode=s2",
        "mapped-page:mode=s2",
    ]


def test_a_broken_strategy_is_skipped_with_a_warning(plugins, caplog):
    before = delivering(plugins, scenario(pits=2), SELECTOR)
    plugins.register(strategy("broken", vmm_msi_attach_device=lambda: None))
    with caplog.at_level(logging.WARNING):
        assert delivering(plugins, scenario(pits=2), SELECTOR) == before
    (message,) = caplog.messages
    assert message.startswith(f"strategy broken: vmm_msi_attach_device did not attach {A}")
    assert message.endswith("; it is skipped")


def test_strategies_on_qemu(plugins):
    needs = iter([Needs(Capability.SW_MSI, frozenset(), qemu=True)])
    broken = strategy("broken").vmm_msi_describe()
    info = replace(broken, needs=lambda _options: next(needs))
    plugins.register(strategy("broken", vmm_msi_describe=lambda: info))
    assert names(on_qemu(plugins)) == ["identity", "multi-its:mode=vsmmu"]
