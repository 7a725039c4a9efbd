"""Exchange requests and results with the agent in the emulated host."""
