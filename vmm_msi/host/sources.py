"""Host discovery: TOML, firmware tables, sysfs or libvirt's node devices become a HostTopology.

``live`` reads a host from its own files, ``join`` puts sources together, ``crosscheck`` compares
them, ``resolve`` finds a device.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.host.resolve import resolve, with_devices
from vmm_msi.types import Granule

if TYPE_CHECKING:
    from pathlib import Path

    from vmm_msi.types import HostTopology

__all__ = ["load_host", "load_sources", "resolve", "with_devices"]

#: How the name of a capture ends.
CAPTURE = ".tar.zst"

_FORMS = (
    "a host is a .toml file with [host], a device tree blob (magic d00dfeed), a folder with the "
    "ACPI tables IORT and APIC, a folder laid out like the host's /, or a capture "
    f"({CAPTURE})"
)


def load_host(path: Path, granule: Granule | None = None) -> HostTopology:
    """Read the description of a host, of any kind.

    :param path: a ``.toml`` file, a device tree blob, a folder with ACPI tables or laid out like
        the host's ``/``, or a capture (``.tar.zst``).
    :param granule: page size of the host's kernel, in bytes, where the description does not tell:
        a TOML file and a capture do. 4K is assumed where nothing tells.
    :raise TopologyError: when it is none of them, cannot be read or is malformed.
    :raise ScenarioError: when it is a TOML file with an error.
    """
    from vmm_msi.host.join import join

    return join(load_sources(path, granule), str(path))


def load_sources(path: Path, granule: Granule | None = None) -> tuple[HostTopology, ...]:
    """Return what each source in a description says; :func:`load_host` is them as one.

    :raise VmmMsiError: as for :func:`load_host`.
    """
    try:
        if path.is_dir():
            return _folder(path, granule)
        if path.suffix == ".toml":
            from vmm_msi.host.scenario import load_host_toml

            return (load_host_toml(path),)
        if path.name.endswith(CAPTURE):
            from vmm_msi.host.files.archive import open_archive
            from vmm_msi.host.live import read_sources

            return read_sources(open_archive(path), granule)
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as failure:
        raise TopologyError(f"{path}: cannot be read: {failure.strerror}; {_FORMS}") from failure
    except ValueError as failure:
        raise TopologyError(f"{str(path)!r}: not a file name: {failure}; {_FORMS}") from failure
    if magic == b"\xd0\x0d\xfe\xed":
        from vmm_msi.host.firmware.device_tree import load_devicetree

        return (_told(load_devicetree(path, granule or Granule.K4), granule),)
    if magic == b"\x28\xb5\x2f\xfd":  # RFC 8878, 3.1.1
        raise TopologyError(
            f"{path}: is compressed with zstd, as a capture is, which is known by its name: rename "
            f"it to {path.name.partition('.')[0]}{CAPTURE}"
        )
    raise TopologyError(f"{path}: starts with {magic!r}; {_FORMS}")


def _folder(path: Path, granule: Granule | None) -> tuple[HostTopology, ...]:
    if not (path / "IORT").exists() and (path / "sys").is_dir():
        from vmm_msi.host.files.folder import FolderTree
        from vmm_msi.host.live import read_sources

        return read_sources(FolderTree(path), granule)
    from vmm_msi.host.firmware.acpi import load_acpi

    return (_told(load_acpi(path, granule or Granule.K4), granule),)


def _told(host: HostTopology, granule: Granule | None) -> HostTopology:
    return replace(host, granule_known=granule is not None)
