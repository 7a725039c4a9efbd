"""first-in-group: the ITS that Linux uses, the first of the device's ITS group.

Linux ``drivers/acpi/arm64/iort.c`` iort_dev_find_its_id takes index 0 of the IORT's ITS group; a
device tree names one ITS per device.
"""

from __future__ import annotations

from vmm_msi.plugins import HostDevice, HostTopology, ItsSelector


class FirstInGroup(ItsSelector):
    """The selector."""

    name = "first-in-group"
    summary = "the first ITS of the device's group, as Linux does"

    def vmm_msi_select_its(self, device: HostDevice, host: HostTopology) -> int:  # noqa: ARG002
        """Return the first ITS of the group."""
        return device.its
