"""The errno of a message, as the words that strerror(3) has for it."""

from __future__ import annotations

import os
import re

#: An errno as a number: ``= -22``, ``error -22``, ``(-22)``, ``error 22``, ``errno=22``, Rust's
#: ``code: 22``, ``Error(22)`` and ``(os error 22)``.
_NUMBER = re.compile(r"(?:(?<![\w.\-])-|\bcode: |\b[Ee]rror[ (]|\berrno(?:[:=] ?| ))(\d{1,3})\b")
#: The last errno that Linux has.
_LAST = 133


def added(text: str) -> str:
    """Return a message with the words of each errno that it has as a number."""
    numbers = dict.fromkeys(int(number) for number in _NUMBER.findall(text))
    words = [os.strerror(number) for number in numbers if 0 < number <= _LAST]
    return f"{text} ({'; '.join(words)})" if words else text
