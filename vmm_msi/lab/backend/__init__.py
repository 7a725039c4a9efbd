"""Run strategies on the emulated host's kernel from outside."""
