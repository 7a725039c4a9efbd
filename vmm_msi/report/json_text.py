"""JSON documents as text that a terminal can show."""

from __future__ import annotations

import json
import re

import msgspec

_NOT_ASCII = re.compile(r"[^\n -~]")


def json_text(document: object) -> str:
    """Return ``document`` as indented JSON that ends in a line break."""
    try:
        text = msgspec.json.format(msgspec.json.encode(document)).decode()
    except UnicodeEncodeError:
        # A file name that is not UTF-8 has lone surrogates, which msgspec does not encode.
        text = json.dumps(msgspec.to_builtins(document), indent=2)
    return escape_unprintable(text) + "\n"


def escape_unprintable(text: str) -> str:
    r"""Return JSON in which each character that a terminal would obey is an escape like ``\u202e``.

    The meaning is the same, since such characters occur in strings only.
    """
    return text if text.replace("\n", "").isprintable() else _NOT_ASCII.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return character if character.isprintable() else json.dumps(character)[1:-1]
