"""Wait for what another process does."""

from __future__ import annotations

import time


def wait_until(condition, seconds=30):
    """Tell whether ``condition`` became true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False
