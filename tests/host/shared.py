"""Find the real tables and blobs that the tests read but the project does not ship."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data(name):
    """Return the path of ``name`` in the shared data; skip, in CI fail, where it is missing."""
    folder = os.environ.get("VMM_MSI_SHARED_DATA")
    checkout = Path(__file__).resolve().parents[2]
    path = (Path(folder) if folder else checkout.parent / "shared" / "data") / name
    if path.exists():
        return path
    reason = f"no real firmware data: {path} is missing (set VMM_MSI_SHARED_DATA)"
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI this must not be skipped: {reason}", pytrace=False)
    pytest.skip(reason)
    raise AssertionError
