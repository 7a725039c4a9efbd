"""The pages about findings: what is checked, what happens, what to do, and the sources.

The pages are package data, ``vmm_msi/doctor/findings/ID.md``.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import resources

from vmm_msi.errors import UsageError

_FOLDER = "vmm_msi.doctor.findings"


def ids() -> tuple[str, ...]:
    """Return the ids of all findings that have a page, sorted."""
    files = resources.files(_FOLDER).iterdir()
    return tuple(sorted(file.name[:-3] for file in files if file.name.endswith(".md")))


def page(name: str) -> str:
    """Return the page about the finding ``name``, in Markdown.

    :raise UsageError: if no finding has this id; the message suggests similar ids.
    """
    known = ids()
    if name not in known:
        near = get_close_matches(name, known, n=4, cutoff=0.4) or [
            known_id for known_id in known if any(word in known_id for word in name.split("-"))
        ]
        hint = f"similar: {', '.join(near)}" if near else "vmm-msi doctor prints the ids"
        raise UsageError(f"finding {name!r}: unknown id; {hint}")
    return resources.files(_FOLDER).joinpath(f"{name}.md").read_text(encoding="utf-8")


def title(name: str) -> str:
    """Return the title of the page about the finding ``name``.

    :raise UsageError: if no finding has this id.
    """
    head, _, _ = page(name).partition("\n")
    return head.partition(": ")[2]
