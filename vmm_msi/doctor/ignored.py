"""Findings that a user knows and does not want to see again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from vmm_msi.doctor.finding import Finding


@dataclass(frozen=True)
class Ignored:
    """A finding to ignore, about one device or about anything.

    :param id: of the finding.
    """

    id: str
    device: PciAddress | None = None

    @classmethod
    def parse(cls, text: str) -> Ignored:
        """Return what ``ID`` or ``ID:DEVICE`` means; ids of findings have no colon.

        :raise UsageError: for a device that is not a PCI address.
        """
        name, _, device = text.partition(":")
        return cls(name, PciAddress.parse(device) if device else None)

    def matches(self, finding: Finding) -> bool:
        """Return whether a finding is ignored; one about several devices is only by its id."""
        return finding.id == self.id and (
            self.device is None or finding.subject == str(self.device)
        )
