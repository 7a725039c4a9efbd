"""The depth of tests whose number of inputs is arbitrary: all of them in CI, fewer elsewhere.

``CI=true``, which ``.ci/run`` sets, is the full depth.
"""

from __future__ import annotations

import os

IS_FULL = os.environ.get("CI") == "true"


def depth(full: int) -> int:
    """Return how many inputs to run of ``full``: two in five, but at least 20, outside CI."""
    return full if IS_FULL else min(full, max(20, full * 2 // 5))
