"""The configuration and the plugins that a function uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.config import Config
from vmm_msi.errors import UsageError
from vmm_msi.plugins.manager import PluginManager

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.config import Choice


def configuration(value: object) -> Config:
    """Return the configuration; the defaults for None.

    :raise UsageError: for another value than a configuration.
    """
    if value is None or isinstance(value, Config):
        return value or Config()
    raise UsageError(f"settings {value!r}: not a configuration; use vmm_msi.load_config()")


def plugin_manager(value: object, settings: Config, named: Iterable[Choice] = ()) -> PluginManager:
    """Return the plugins; for None those that are installed.

    :param settings: plugins that it or ``named`` selects must load.
    :raise UsageError: for another value than a plugin manager.
    :raise PluginError: when a selected plugin cannot be loaded.
    """
    if isinstance(value, PluginManager):
        return value
    if value is not None:
        raise UsageError(f"plugins {value!r}: not plugins; use vmm_msi.PluginManager.load()")
    strategies, selectors = settings.names()
    required = {choice.strategy for choice in named} | strategies | selectors
    return PluginManager.load(settings.table.plugins.disabled, required)
