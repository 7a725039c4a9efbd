"""Sample hosts, guests and scenarios that ship with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from vmm_msi.errors import UsageError


def names() -> tuple[str, ...]:
    """Return the names of the samples."""
    suffixes = (".dts", ".dtb", ".toml", ".xml")
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name for file in files if file.name.endswith(suffixes)))


def path(name: str) -> Path:
    """Return the file of the sample ``name``, such as ``two-its.toml``.

    :raise UsageError: when no sample has that name.
    """
    valid = names()
    if name not in valid:
        raise UsageError(f"no sample {name!r}; valid: {', '.join(valid)}")
    return Path(str(resources.files(__name__).joinpath(name)))
