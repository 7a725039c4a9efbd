"""Bring guests up with the strategies chosen for their devices, and see where every MSI lands."""
