"""Print hosts and scenarios as scenario files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.host.scenario_export import host_document, left_out
from vmm_msi.host.scenario_text import toml_lines
from vmm_msi.terminal import print_document

if TYPE_CHECKING:
    from pathlib import Path

    from vmm_msi.types import HostTopology


def host_text(host: HostTopology) -> str:
    """Return a host as a scenario file; reading it gives an equal host with another source."""
    heading = (f"The host that {host.source} describes.", *left_out(host))
    return "".join(f"{line}\n" for line in toml_lines(host_document(host), heading))


def write_scenario(text: str, path: Path | None, *, force: bool) -> None:
    """Write a scenario file to ``path``; None for standard output.

    :raise OutputError: when the file exists without ``force`` or cannot be written.
    """
    if path is None:
        print_document(text)
        return
    from vmm_msi.output import output_file

    with output_file(path, force=force, mode=0o666) as file:
        file.write(text.encode())
