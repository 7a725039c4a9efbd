"""Write a number with its noun: ``1 device``, ``2 devices``."""

from __future__ import annotations


def quantity(number: int, noun: str) -> str:
    """Return a number and its noun, in the singular or the plural.

    :param noun: in the singular; it forms its plural with ``s``, or ``es`` after an s.
    """
    if number == 1:
        return f"{number} {noun}"
    return f"{number} {noun}{'es' if noun[-1] in 'sS' else 's'}"
