"""Strategies for the MSI doorbells of assigned PCI devices behind a nested Arm SMMU."""

from __future__ import annotations

__version__ = "0.1.0"
