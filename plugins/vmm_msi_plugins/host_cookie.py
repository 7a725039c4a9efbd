"""host-cookie: the host is left alone. The baseline that must fail.

The host's kernel takes a page of its own software MSI window, maps it to the doorbell at stage 2
and writes it into the device. The guest never learns of it, so stage 1 has no entry for it.
"""

from __future__ import annotations

from vmm_msi.plugins import Capability, Needs, Options, PluginInfo, PluginKind, hookimpl
from vmm_msi_plugins.common import (
    vmm_msi_attach_device,
    vmm_msi_detach_device,
    vmm_msi_prepare_msi,
)

__all__ = [
    "vmm_msi_attach_device",
    "vmm_msi_detach_device",
    "vmm_msi_prepare_msi",
]


def _needs(_options: Options) -> Needs:
    return Needs(interface=Capability.SW_MSI, capabilities=frozenset({Capability.SW_MSI}))


@hookimpl
def vmm_msi_describe() -> PluginInfo:
    """Describe the strategy."""
    return PluginInfo(
        name="host-cookie",
        kind=PluginKind.STRATEGY,
        summary="leave the host's MSI allocator alone: the baseline that faults in stage 1",
        needs=_needs,
        guest="nothing, which is why it fails",
        host="any kernel",
        xml="vSMMUs and hostdevs, no more",
        costs="one S2 per physical SMMU, one S2 mapping per physical ITS in each",
    )
