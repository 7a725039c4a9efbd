"""Define, start and find the emulated Arm host."""
