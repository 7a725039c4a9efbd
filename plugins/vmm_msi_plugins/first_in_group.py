"""first-in-group: the ITS that Linux uses, the first of the device's ITS group.

Linux ``drivers/acpi/arm64/iort.c`` iort_find_domain_id takes index 0 of the IORT's ITS group; a
device tree names one ITS per device.
"""

from __future__ import annotations

from vmm_msi.plugins import HostDevice, PluginInfo, PluginKind, hookimpl


@hookimpl
def vmm_msi_describe() -> PluginInfo:
    """Describe the selector."""
    return PluginInfo(
        name="first-in-group",
        kind=PluginKind.ITS_SELECTOR,
        summary="the first ITS of the device's group, as Linux does",
    )


@hookimpl
def vmm_msi_select_its(device: HostDevice) -> int:
    """Return the first."""
    return device.its
