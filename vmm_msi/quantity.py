"""Write a number with its noun: ``1 device``, ``2 devices``."""

from __future__ import annotations


def quantity(number: int, noun: str) -> str:
    """Return a number and its noun, in the singular or with an ``s``.

    :param noun: in the singular, one that forms its plural with ``s``.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
