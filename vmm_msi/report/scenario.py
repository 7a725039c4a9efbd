"""Print hosts and scenarios as scenario files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.host.scenario_export import host_document, left_out
from vmm_msi.host.scenario_text import toml_lines

if TYPE_CHECKING:
    from vmm_msi.types import HostTopology


def host_text(host: HostTopology) -> str:
    """Return a host as a scenario file; reading it gives an equal host with another source."""
    heading = (f"The host that {host.source} describes.", *left_out(host))
    return "".join(f"{line}\n" for line in toml_lines(host_document(host), heading))
