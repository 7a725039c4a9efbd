"""The systemd unit of the service, made from the file beside this module.

systemd.service(5), systemd.exec(5), systemd.unit(5).
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TEMPLATE = "vmm-msi-watch.service"

_PLAIN = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-./:=?@_,[]{}&~^#!*()|<>%$"
)


def render(command: Sequence[str], tables: Sequence[Path]) -> str:
    """Return the unit.

    :param command: the program and its arguments; ``--host`` is added where ``tables`` says so.
    :param tables: files of this machine that describe it and that root alone can read: systemd
        reads them and gives the service copies. One is a device tree, several are ACPI tables;
        none where the command names a description.
    """
    words = [_quoted(word) for word in command]
    lines = []
    if tables:
        lines = [
            "# Root alone may read these, so systemd reads them: they are copied to --host.",
            *(f"LoadCredential={table.name}:{table}" for table in tables),
        ]
        words += ["--host", "%d" if len(tables) > 1 else f"%d/{tables[0].name}"]
    text = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    host = "".join(f"{line}\n" for line in lines)
    return text.replace("@COMMAND@", " ".join(words)).replace("@HOST@\n", host)


def _quoted(word: str) -> str:
    """Return a word as systemd.service(5) reads it back."""
    escaped = word.replace("%", "%%").replace("$", "$$")
    if word and _PLAIN.issuperset(word):
        return escaped
    inner = escaped.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{inner}"'
