"""Mechanism: what carries a strategy's plan out."""
