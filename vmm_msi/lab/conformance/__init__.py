"""Compare the simulator with the emulated host's kernel, call by call."""
