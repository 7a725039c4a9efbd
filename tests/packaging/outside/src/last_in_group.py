"""A third-party ITS selector, as a class."""

from __future__ import annotations

from vmm_msi.plugins import HostDevice, HostTopology, ItsSelector


class LastInGroup(ItsSelector):
    name = "last-in-group"
    summary = "the last ITS of the group"

    def vmm_msi_select_its(self, device: HostDevice, host: HostTopology) -> int:
        return device.its_group[-1]
