"""Start a guest in the emulated host and count its interrupts."""
