"""Attach guests with the strategies chosen for their devices, and report where MSIs arrive."""
