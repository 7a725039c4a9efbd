"""What is needed to try things without Arm hardware."""

from __future__ import annotations

#: The Debian suite that everything in the lab is taken from unless another is asked for.
DEFAULT_SUITE = "forky"
