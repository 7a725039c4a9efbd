"""Look for plugins of others, without importing what a plugin takes."""

from __future__ import annotations

from importlib.metadata import entry_points

_GROUP = "vmm_msi"
_SHIPPED = "vmm_msi_plugins"


def others_installed() -> bool:
    """Return whether a plugin is installed that does not ship with vmm-msi."""
    return any(point.module.partition(".")[0] != _SHIPPED for point in entry_points(group=_GROUP))
