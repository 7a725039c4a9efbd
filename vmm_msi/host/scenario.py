"""Read scenario files: a host and a guest on it, in TOML.

A file with only ``[host]`` describes a host; docs/scenario.md has the keys. Addresses and ids are
integers or hex strings (``"0x200000000"``). A file is refused once, with all that is wrong with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vmm_msi import tomlfile
from vmm_msi.errors import ScenarioError
from vmm_msi.host.scenario_guest import GuestReader
from vmm_msi.host.scenario_host import HostReader
from vmm_msi.host.scenario_problems import Problems
from vmm_msi.host.scenario_tables import ScenarioFile

if TYPE_CHECKING:
    from pathlib import Path

    from vmm_msi.types import HostTopology, Scenario

#: Limit of a scenario in bytes; about 10,000 devices.
MAX_SIZE = 4 << 20


def load_scenario(path: Path) -> Scenario:
    """Read the host and the guest in the scenario file ``path``.

    :raise ScenarioError: when the file cannot be read, is not TOML, has unknown keys or contradicts
        itself; the message has a line for each error, with line and key.
    """
    return parse_scenario(tomlfile.read_text(path, ScenarioError, MAX_SIZE), str(path))


def parse_scenario(text: str, source: str) -> Scenario:
    """Read the scenario ``text``.

    :param source: name of the file, for messages.
    :raise ScenarioError: as for :func:`load_scenario`.
    """
    document = tomlfile.parse(text, source, ScenarioError, MAX_SIZE)
    return scenario_of_document(document, source, text)


def scenario_of_document(document: object, source: str, text: str = "") -> Scenario:
    """Return the scenario that a document of TOML describes.

    :param document: as :func:`vmm_msi.tomlfile.parse` returns it.
    :param text: of the document, to find the lines of errors; without it errors have no line.
    :raise ScenarioError: as for :func:`load_scenario`.
    """
    host, scenario = _read(document, source, text)
    if scenario is None:
        raise ScenarioError(
            f"{source}: has no [guest]; a scenario has [host] and [guest], and an empty [guest] "
            f"has all {len(host.devices)} devices of the host"
        )
    return scenario


def load_host_toml(path: Path) -> HostTopology:
    """Read the host in the scenario file ``path``, which need not have a guest.

    :raise ScenarioError: as for :func:`load_scenario`.
    """
    return parse_host(tomlfile.read_text(path, ScenarioError, MAX_SIZE), str(path))


def parse_host(text: str, source: str) -> HostTopology:
    """Read the host in the scenario ``text``, which need not have a guest.

    :param source: name of the file, for messages.
    :raise ScenarioError: as for :func:`load_scenario`.
    """
    document = tomlfile.parse(text, source, ScenarioError, MAX_SIZE)
    return _read(document, source, text)[0]


def _read(document: object, source: str, text: str) -> tuple[HostTopology, Scenario | None]:
    """Return the host, and the scenario if there is a guest."""
    problems = Problems(text, source)
    try:
        file = tomlfile.convert(document, ScenarioFile, text, source, ScenarioError)
    except ScenarioError:
        repaired = problems.repaired(tomlfile.copied(document), ScenarioFile)
        if repaired is None:
            problems.refuse()
            raise
        file = msgspec.convert(repaired, ScenarioFile, dec_hook=tomlfile.hook)
    host = HostReader(problems).read(file.host, source)
    scenario = None
    if file.guest is not None:
        scenario = GuestReader(problems, host).read(file.guest, file.vmm)
    problems.refuse()
    return host, scenario
