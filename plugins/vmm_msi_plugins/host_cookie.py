"""host-cookie: the host's allocator is left alone. The baseline.

The host's kernel takes a page of its own software MSI window, maps it to the doorbell at stage 2
and writes it into the device. The guest does not learn the address, so its stage 1 does not map it:
MSIs are delivered only where stage 1 is bypassed.
"""

from __future__ import annotations

from vmm_msi.plugins import Capability, Needs, Options, Strategy


class HostCookie(Strategy):
    """The strategy."""

    name = "host-cookie"
    summary = "leave the host's MSI allocator alone: the baseline, which a stage 1 stops"
    guest = "stage 1 bypassed: nothing in it maps the address that the host's kernel picks"
    host = "any kernel"
    xml = "vSMMUs and hostdevs, no more"
    costs = "one S2 per physical SMMU, one S2 mapping per physical ITS in each"

    def needs(self, _options: Options) -> Needs:
        """Require the kernel's allocator."""
        return Needs(interface=Capability.SW_MSI, capabilities=frozenset({Capability.SW_MSI}))
