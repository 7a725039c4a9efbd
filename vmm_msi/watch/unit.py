"""Render the systemd unit of the service from the template beside this module.

systemd.service(5), systemd.exec(5), systemd.unit(5).
"""

from __future__ import annotations

import os
from importlib import resources
from typing import TYPE_CHECKING

from vmm_msi.host.msi_bindings import PATH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TEMPLATE = "vmm-msi-watch.service"
#: The name under which systemd passes the kernel's file of guest MSI bindings.
BINDINGS_NAME = "msi-bindings"

_PLAIN = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-./:=?@_,[]{}&~^#!*()|<>%$"
)


def render(command: Sequence[str], tables: Sequence[Path], *, bindings: bool = False) -> str:
    """Return the text of the unit.

    :param command: the program and its arguments, without ``--host`` if ``tables`` has a file.
    :param tables: the firmware tables of this machine: one device tree, or several ACPI tables.
        Only root can read them, so systemd does and passes copies to the service. Empty if the
        command has ``--host``.
    :param bindings: this machine's kernel takes guest MSI bindings. Only root can open its file, so
        systemd does and passes it to the service.
    """
    arguments = [_quoted(argument) for argument in command]
    lines = []
    if tables:
        lines = [
            "# Only root can read these files; systemd copies them for --host.",
            *(f"LoadCredential={table.name}:{table}" for table in tables),
        ]
        arguments += ["--host", "%d" if len(tables) > 1 else f"%d/{tables[0].name}"]
    if bindings:
        lines += [
            "# Only root can open this file; systemd 253 or newer opens it for the service.",
            f"OpenFile={PATH}:{BINDINGS_NAME}:graceful",
        ]
    text = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    host = "".join(f"{line}\n" for line in lines)
    # The arguments last, since they are not searched then.
    return text.replace("@HOST@\n", host).replace("@COMMAND@", " ".join(arguments))


def _quoted(argument: str) -> str:
    """Return an argument as one printable word, with the escapes of systemd.syntax(7)."""
    escaped = argument.replace("%", "%%").replace("$", "$$")
    if argument and _PLAIN.issuperset(argument):
        return escaped
    inner = escaped.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{"".join(map(_escaped, inner))}"'


def _escaped(character: str) -> str:
    """Return a character that is not printable as its bytes, as they are in the command line."""
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
