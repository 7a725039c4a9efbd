"""Host discovery: TOML, ACPI tables or a device tree become a HostTopology."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.model import Granule
from vmm_msi.topology.resolve import resolve, with_devices

if TYPE_CHECKING:
    from pathlib import Path

    from vmm_msi.model import HostTopology

__all__ = ["load_host", "resolve", "with_devices"]

_FORMS = (
    "a host is a .toml file with [host], a device tree blob (magic d00dfeed) or a folder with the "
    "ACPI tables IORT and APIC"
)


def load_host(path: Path, granule: Granule = Granule.K4) -> HostTopology:
    """Read the description of a host, of any of the three kinds.

    :param path: a ``.toml`` file, a device tree blob or a folder with ACPI tables.
    :param granule: page size of the host's kernel, in bytes, where the description does not tell:
        a TOML file does.
    :raise TopologyError: when it is none of them, cannot be read or is malformed.
    :raise ScenarioError: when it is a TOML file with an error.
    """
    try:
        if path.is_dir():
            from vmm_msi.topology.acpi import load_acpi

            return load_acpi(path, granule)
        if path.suffix == ".toml":
            from vmm_msi.topology.scenario import load_host_toml

            return load_host_toml(path)
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as failure:
        raise TopologyError(f"{path}: cannot be read: {failure.strerror}; {_FORMS}") from failure
    except ValueError as failure:
        raise TopologyError(f"{str(path)!r}: not a file name: {failure}; {_FORMS}") from failure
    if magic == b"\xd0\x0d\xfe\xed":
        from vmm_msi.topology.devicetree import load_devicetree

        return load_devicetree(path, granule)
    raise TopologyError(f"{path}: starts with {magic!r}; {_FORMS}")
