"""The lab: an emulated Arm host with a real kernel, libvirt and QEMU, built and run on demand."""

from __future__ import annotations

#: The Debian suite that the lab is built from by default.
DEFAULT_SUITE = "forky"
