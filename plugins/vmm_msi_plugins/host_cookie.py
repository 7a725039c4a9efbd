"""host-cookie: the host's allocator is left alone. The baseline that must fail.

The host's kernel takes a page of its own software MSI window, maps it to the doorbell at stage 2
and writes it into the device. The guest does not learn the address, so its stage 1 does not map it.
"""

from __future__ import annotations

from vmm_msi.plugins import Capability, Needs, Options, Strategy


class HostCookie(Strategy):
    """The strategy."""

    name = "host-cookie"
    summary = "leave the host's MSI allocator alone: the baseline that faults in stage 1"
    guest = "nothing, which is why it fails"
    host = "any kernel"
    xml = "vSMMUs and hostdevs, no more"
    costs = "one S2 per physical SMMU, one S2 mapping per physical ITS in each"

    def needs(self, _options: Options) -> Needs:
        """Require the kernel's allocator."""
        return Needs(interface=Capability.SW_MSI, capabilities=frozenset({Capability.SW_MSI}))
