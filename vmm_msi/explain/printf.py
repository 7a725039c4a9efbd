"""Turn printf formats of programs into patterns that match their output.

The tables of this package hold formats as they are in sources and binaries. A conversion matches a
bounded number of characters, and conversions that match the same characters are never adjacent, so
the time per line is bounded.
"""

from __future__ import annotations

import re

#: A conversion of C's printf, the kernel's ``%p`` extensions and gettext's ``%1$s`` included.
_CONVERSION = re.compile(
    r"%(?:\d{1,2}\$)?(?P<flags>[-+ 0#]*)\d*(?:\.\d+)?(?:hh|h|ll|l|z)?"
    r"(?P<kind>[diuxXscpm%])(?P<extension>(?<=p)[a-zA-Z]\w?)?"
)

#: Spaces of which a line may have another number.
_SPACES = re.compile(r"  +|(?<=[,=]) | (?==)")

_PATTERNS = {
    "d": r"(-?\d{1,20})",
    "i": r"(-?\d{1,20})",
    "u": r"(\d{1,20})",
    "x": r"(?:0x)?([0-9a-fA-F]{1,16})",
    "X": r"(?:0x)?([0-9a-fA-F]{1,16})",
    "c": r"(.)",
    "s": r"([^\n]{1,200}?)",
    "p": r"(\S{1,80}?)",
    "R": r"(\[[^\]\n]{1,100}\])",
    "m": r"([A-Z][\w ,/'-]{1,60})",
}


def pattern(text: str) -> re.Pattern[str]:
    """Return a pattern for the output of a printf format; each conversion is a group."""
    text = text.rstrip()
    parts = []
    position = 0
    for match in _CONVERSION.finditer(text):
        parts.append(_literal(text[position : match.start()]))
        position = match.end()
        kind = "R" if match["extension"] in ("R", "r") else match["kind"]
        part = "%" if kind == "%" else _PATTERNS[kind]
        # The last conversion matches as much as possible.
        parts.append(part.replace("}?)", "})") if position == len(text) else part)
    return re.compile("".join(parts) + _literal(text[position:]))


def key(text: str) -> str:
    """Return the longest part of a format without conversions, and without optional spaces."""
    parts = [part.strip() for part in _SPACES.sub("\0", _CONVERSION.sub("\0", text)).split("\0")]
    return max(parts, key=len)


def _literal(text: str) -> str:
    # Logs and terminals may change the number of spaces, and a mailer wraps a line at one. Some
    # writers omit the spaces after a comma and around an equals sign.
    literal = re.sub(r"(?<=[,=])(?:\\ )+|(?:\\ )+(?==)", r"[ \\n]{0,8}", re.escape(text))
    return re.sub(r"(?:\\ )+", r"[ \\n]{1,8}", literal)
