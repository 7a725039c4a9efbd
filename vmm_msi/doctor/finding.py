"""What the doctor found: stable ids, severities, evidence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is, worst first."""

    #: What was asked for will not work.
    ERROR = "error"
    #: It will not work under a condition that is named, or it is dangerous.
    WARNING = "warning"
    #: Good to know; nothing has to be done.
    NOTE = "note"
    #: It could not be looked at, so that nothing is known either way.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was read, and where.

    :param where: a file of the host, an XML path, a command: where somebody else can look, too.
    :param what: the value that is there, or that nothing is.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    :param id: its stable name; ``vmm_msi/doctor/findings`` has a page of that name.
    :param subject: what it is about: the host, a device, a guest.
    :param evidence: what was read.
    :param consequence: what will happen, in one sentence.
    :param remedy: what to do about it, in one sentence.
    """

    id: str
    severity: Severity
    subject: str
    evidence: tuple[Evidence, ...]
    consequence: str
    remedy: str
