"""Patch, devices and licence of the QEMU that the lab builds (GPL-2.0-or-later)."""
