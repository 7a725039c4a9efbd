"""Findings of the doctor: stable ids, severities, evidence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How severe a finding is, worst first."""

    #: The requested setup will not work.
    ERROR = "error"
    #: The setup will not work under a stated condition, or it is dangerous.
    WARNING = "warning"
    #: For information; no action is needed.
    NOTE = "note"
    #: The check could not run, so the result is unknown.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Evidence:
    """A value that the doctor read, and its place.

    :param where: a file of the host, an XML path or a command, so that the reader can check it.
    :param what: the value, or that it is missing.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a rule.

    :param id: its stable name; ``vmm_msi/doctor/findings``, or its plugin, has a page of that name.
    :param subject: the host, a device or a guest.
    :param evidence: the values that it is based on.
    :param consequence: what will happen, in one sentence.
    :param remedy: what to do about it, in one sentence.
    """

    id: str
    severity: Severity
    subject: str
    evidence: tuple[Evidence, ...]
    consequence: str
    remedy: str
