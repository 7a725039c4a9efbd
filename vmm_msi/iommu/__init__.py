"""Mechanism: apply a strategy's plan to a kernel, simulated or real."""
