"""A new distribution with a strategy: its files, from templates that ship with the package."""

from __future__ import annotations

import re
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

from vmm_msi.errors import OutputError, UsageError
from vmm_msi.output import output_file

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

_PREFIX = "vmm-msi-"
#: A name that is a distribution's in its normal form (PEP 503), a module's and a class's.
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
#: More makes names that do not fit on a line.
_MAX_NAME = 40
#: Path of each file in the distribution, by the name of its template; Python's names in braces.
_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "module.py": "src/{module}/__init__.py",
    "py.typed": "src/{module}/py.typed",
    "test_strategy.py": "tests/test_{module}.py",
}


def distribution_name(name: str) -> str:
    """Return the name of the distribution of a strategy."""
    return name if name.startswith(_PREFIX) else f"{_PREFIX}{name}"


def check_name(name: str, taken: Collection[str]) -> None:
    """Check the name of a new strategy.

    :param taken: names of installed plugins.
    :raise UsageError: if it is not a name, or taken.
    """
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        words = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789")[:_MAX_NAME]
        similar = words.rstrip("-")
        hint = f", such as {similar!r}" if _NAME.fullmatch(similar) else ""
        raise UsageError(
            f"new plugin {name[:80]!r}: not a name; use lower-case letters and digits, a letter "
            f"first, and '-' between words, up to {_MAX_NAME} characters{hint}"
        )
    if name in taken:
        raise UsageError(f"new plugin {name!r}: a plugin of this name is installed; use another")


def files_of(name: str) -> Mapping[str, str]:
    """Return the text of each file of the distribution of a strategy, by its path.

    :param name: as :func:`check_name` allows it.
    """
    distribution = distribution_name(name)
    class_name = "".join(word.capitalize() for word in name.split("-"))
    values = {
        "name": name,
        "distribution": distribution,
        "module": distribution.replace("-", "_"),
        "class_name": f"{class_name}Strategy",
        "options_name": f"{class_name}Options",
    }
    templates = resources.files(__package__).joinpath("template")
    return {
        path.format(**values): Template(
            templates.joinpath(f"{template}.template").read_text(encoding="utf-8")
        ).substitute(values)
        for template, path in _FILES.items()
    }


def write(folder: Path, files: Mapping[str, str], *, force: bool) -> None:
    """Write a distribution into a new folder.

    :param force: write into an existing folder, over its files of these names.
    :raise OutputError: if the folder exists, or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=force)
        for path in files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        problem = "it exists already; name another with -o, or use --force to write into it"
        if force:
            problem = "a file has this name; name another folder with -o"
        raise OutputError(f"writing {error.filename or folder}: {problem}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"writing {folder}: {reason}") from error
    for path, text in files.items():
        with output_file(folder / path, force=force, mode=0o666) as file:
            file.write(text.encode())
