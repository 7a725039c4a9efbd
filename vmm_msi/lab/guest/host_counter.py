"""Count what ``vmm-msi status`` measures in the emulated host, without vmm-msi's readers.

The addresses are those that QEMU's device has in its MSI-X table, read from outside the emulated
host. Interrupts and faults are counted in the texts of its kernel.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vmm_msi.lab.guest.result import Counts, Prediction
from vmm_msi.types import Iova, PciAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm_msi.lab.rpc.link import AgentLink

_ENTRY_WORDS = 4
_MASKED = 1


class HostCounter:
    """Count the MSIs of devices of the emulated host.

    :param link: the link to its agent.
    :param words: reads words of 32 bits of its physical memory: address and number.
    """

    def __init__(self, link: AgentLink, words: Callable[[int, int], Sequence[int]]) -> None:
        self._link = link
        self._words = words

    def counts(self, devices: Sequence[PciAddress]) -> dict[PciAddress, Counts]:
        """Return the counts of each device.

        :raise LabError: when something cannot be read.
        """
        interrupts = self._link.call("look")["interrupts"].values()
        log = self._link.call("kernel-log").splitlines()
        counts = {}
        for device in devices:
            # On this board a StreamID is a RequesterID.
            faults = [
                line for line in log if " event: " in line and f" sid: {device.rid:#x} " in line
            ]
            own = (count for name, count in interrupts if name.endswith(f"({device})"))
            counts[device] = Counts(self.addresses(device), sum(own), len(faults))
        return counts

    def addresses(self, device: PciAddress) -> tuple[Iova, ...]:
        """Return the addresses in the unmasked entries of a device's MSI-X table."""
        table = self._link.call("msi-table", address=str(device))
        words = self._words(table["address"], table["entries"] * _ENTRY_WORDS)
        entries = zip(*[iter(words)] * _ENTRY_WORDS, strict=True)
        addresses = {low | high << 32 for low, high, _data, mask in entries if not mask & _MASKED}
        return tuple(map(Iova, sorted(addresses)))


def reported_counts(document: str) -> dict[PciAddress, Counts]:
    """Return the counts in the output of ``vmm-msi status GUEST --format json``."""
    counts = {}
    for device in json.loads(document)["devices"]:
        measured = device["measured"]
        if measured is not None:
            addresses = measured["programmed_iovas"]
            counts[PciAddress.parse(device["device"])] = Counts(
                None if addresses is None else tuple(Iova(int(text, 16)) for text in addresses),
                measured["interrupts"],
                measured["faults"],
            )
    return counts


def predictions(document: str) -> dict[PciAddress, Prediction]:
    """Return the predictions in the output of ``vmm-msi attach --format json``."""
    expected = {}
    for device in json.loads(document)["devices"]:
        if (predicted := device["predicted"]) is not None:
            addresses = tuple(Iova(int(text, 16)) for text in predicted["possible_iovas"])
            address = PciAddress.parse(device["device"])
            expected[address] = Prediction(predicted["outcome"], addresses)
    return expected


def faults(log: str) -> list[str]:
    """Return the lines of a kernel's log that report SMMU events."""
    lines = (line.strip() for line in log.splitlines())
    return [line for line in lines if "arm-smmu-v3" in line and " event" in line]
