"""Count the MSIs that reach the emulated host's ITSes, by DeviceID, EventID and ITS.

QEMU traces every write to GITS_TRANSLATER (``hw/intc/arm_gicv3_its.c`` gicv3_its_translation_write,
``hw/intc/trace-events``), after both stages of the SMMU. The lab's QEMU for several ITSes also
traces the base of the ITS (``vmm_msi/lab/qemu/its-count.patch``).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import LabError
from vmm_msi.types import Pa

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

EVENT = "gicv3_its_translation_write"

_LINE = re.compile(
    rb"translation_write.* data (0x[0-9a-f]+) .*requester_id (0x[0-9a-f]+)(?: its (0x[0-9a-f]+))?"
)


class Msi(NamedTuple):
    """The device and the event of an MSI, and the ITS that it reached.

    :param its: base of the ITS; None if the host has one ITS.
    """

    device_id: int
    event_id: int
    its: Pa | None = None


class MsiCounts(NamedTuple):
    """The MSIs of one device.

    :param landed: number of those that reached its own ITS, by EventID.
    :param misrouted: number of those that reached another ITS, by the base of that ITS.
    """

    landed: dict[int, int]
    misrouted: dict[Pa, int]


def counts_of(device_id: int, own: Pa, msis: Mapping[Msi, int]) -> MsiCounts:
    """Return the counts of one device.

    :param own: base of the device's own ITS.
    :param msis: the number of each MSI.
    """
    landed: Counter[int] = Counter()
    misrouted: Counter[Pa] = Counter()
    for msi, number in msis.items():
        if msi.device_id != device_id:
            continue
        if msi.its is None or msi.its == own:
            landed[msi.event_id] += number
        else:
            misrouted[msi.its] += number
    return MsiCounts(dict(landed), dict(misrouted))


class ItsLog:
    """Read the log incrementally.

    :param path: QEMU's log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def new(self) -> Counter[Msi]:
        """Return the number of each MSI since the last call.

        :raise LabError: when the log cannot be read.
        """
        counts: Counter[Msi] = Counter()
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._at += len(line)
                    match = _LINE.search(line)
                    if match is not None:
                        data, requester, base = match.groups()
                        its = None if base is None else Pa(int(base, 16))
                        counts[Msi(int(requester, 16), int(data, 16), its)] += 1
        except OSError as error:
            raise LabError(
                f"reading the log of MSIs at the ITS: {self._path}: {error.strerror}"
            ) from error
        return counts
