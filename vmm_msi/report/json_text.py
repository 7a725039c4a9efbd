"""JSON documents as text that a terminal can show."""

from __future__ import annotations

import json
import re

import msgspec

_NOT_ASCII = re.compile(r"[^\n -~]")


def json_text(document: object) -> str:
    """Return ``document`` as indented JSON that ends in a line break."""
    plain = msgspec.to_builtins(document)
    return escape_unprintable(json.dumps(plain, indent=2, ensure_ascii=False)) + "\n"


def escape_unprintable(text: str) -> str:
    r"""Return JSON with each character that a terminal would obey as ``\u202e``.

    Its meaning does not change: such characters are in strings alone. Lone surrogates, which stand
    for the bytes of a file name that is not UTF-8, are escaped too.
    """
    return text if text.isascii() and "\x7f" not in text else _NOT_ASCII.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return character if character.isprintable() else json.dumps(character)[1:-1]
