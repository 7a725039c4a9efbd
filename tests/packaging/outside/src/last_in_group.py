"""An ITS selector of somebody else's."""

from __future__ import annotations

from vmm_msi.plugins import HostDevice, PluginInfo, PluginKind, hookimpl


@hookimpl
def vmm_msi_describe() -> PluginInfo:
    return PluginInfo(
        name="last-in-group", kind=PluginKind.ITS_SELECTOR, summary="the last ITS of the group"
    )


@hookimpl
def vmm_msi_select_its(device: HostDevice) -> int:
    return device.its_group[-1]
