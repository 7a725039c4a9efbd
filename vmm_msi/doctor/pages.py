"""The pages about findings: what is checked, what happens, what to do, and the sources.

They are files ``vmm_msi/doctor/findings/ID.md``, package data.
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

    :raise UsageError: when there is none; it names ids that are like it.
    """
    known = ids()
    if name not in known:
        near = get_close_matches(name, known, n=4, cutoff=0.4) or [
            each for each in known if any(word in each for word in name.split("-"))
        ]
        like = f"there are: {', '.join(near)}" if near else "vmm-msi doctor prints the ids"
        raise UsageError(f"finding {name!r}: there is none of this id; {like}")
    return resources.files(_FOLDER).joinpath(f"{name}.md").read_text(encoding="utf-8")


def title(name: str) -> str:
    """Return the title of the page about the finding ``name``.

    :raise UsageError: when there is no such page.
    """
    head, _, _ = page(name).partition("\n")
    return head.partition(": ")[2]
