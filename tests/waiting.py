"""Wait for a condition that another process fulfils."""

from __future__ import annotations

import time


def wait_until(condition, seconds=30):
    """Return whether ``condition`` became true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False
