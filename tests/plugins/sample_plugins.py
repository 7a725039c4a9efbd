"""Plugins for tests: modules of hook functions."""

from __future__ import annotations

import types

from vmm_msi.plugins import (
    Capability,
    Needs,
    PluginInfo,
    PluginKind,
    S2Pool,
    hookimpl,
    smmu_of,
)


def plugin(info, **hooks):
    """Return a module of hook functions."""
    module = types.ModuleType(f"sample_{info.name}")
    for name, function in {"vmm_msi_describe": lambda: info, **hooks}.items():
        setattr(module, name, hookimpl(function))
    return module


def strategy_info(name):
    return PluginInfo(
        name,
        PluginKind.STRATEGY,
        "a strategy for a test",
        needs=lambda _options: Needs(Capability.SW_MSI, frozenset({Capability.SW_MSI})),
    )


def strategy(name, **hooks):
    """Return a strategy that does what host-cookie does, but for ``hooks``."""

    def attach(session, device):
        session.state(S2Pool).attach(session, device, smmu_of(session, device))

    def detach(session, device):
        session.state(S2Pool).detach(session, device)

    def prepare(session, device):
        return session.backend.prepare_msi(device)

    complete = {
        "vmm_msi_attach_device": attach,
        "vmm_msi_detach_device": detach,
        "vmm_msi_prepare_msi": prepare,
    }
    return plugin(strategy_info(name), **(complete | hooks))


def observer(name, **hooks):
    return plugin(PluginInfo(name, PluginKind.OBSERVER, "an observer for a test"), **hooks)


def selector(name, answer):
    info = PluginInfo(name, PluginKind.ITS_SELECTOR, "a selector for a test")
    return plugin(info, vmm_msi_select_its=answer)
