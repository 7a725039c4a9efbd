"""Findings of the doctor; defined with the other values, since plugins report them too."""

from __future__ import annotations

from vmm_msi.types.finding import Evidence, Finding, Severity

__all__ = ["Evidence", "Finding", "Severity"]
