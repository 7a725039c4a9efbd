"""The difference between two domain XML texts, for people."""

from __future__ import annotations

import difflib

from vmm_msi.domxml.parse import parse, serialise


def unified(old: str, new: str, name: str) -> str:
    """Return a unified diff; it is empty if the texts differ in the style of quotes alone.

    :param old: XML text before the change.
    :param new: XML text after it.
    :param name: name of the document in the head of the diff.
    :raise DomainXmlError: when one of them cannot be read.
    """
    before, after = (serialise(parse(text, name)).splitlines(keepends=True) for text in (old, new))
    return "".join(difflib.unified_diff(before, after, f"{name} (before)", f"{name} (after)"))
