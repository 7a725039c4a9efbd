"""Count the MSIs that reach the emulated host's ITS, by DeviceID and EventID.

QEMU traces every write to GITS_TRANSLATER (``hw/intc/arm_gicv3_its.c`` gicv3_its_translation_write,
``hw/intc/trace-events``), after both stages of the SMMU.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import LabError

if TYPE_CHECKING:
    from pathlib import Path

EVENT = "gicv3_its_translation_write"

_LINE = re.compile(rb"translation_write.* data (0x[0-9a-f]+) .*requester_id (0x[0-9a-f]+)")


class Msi(NamedTuple):
    """The device and the event of an MSI."""

    device_id: int
    event_id: int


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
                        counts[Msi(int(match[2], 16), int(match[1], 16))] += 1
        except OSError as error:
            raise LabError(
                f"reading the log of MSIs at the ITS: {self._path}: {error.strerror}"
            ) from error
        return counts
