"""Read a host: by the names that the command line takes, or as a value that was read before."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.arguments import file_path, page_size
from vmm_msi.errors import UsageError
from vmm_msi.host import sources
from vmm_msi.host.sources import HostSources
from vmm_msi.library.installed import others_installed
from vmm_msi.types import Granule, HostTopology

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.report.documents import TopologyDocument

    #: A file, a folder, a capture or a libvirt URI.
    HostName = str | os.PathLike[str]
    #: One host: as values that were read before, or by one name or several.
    AnyHost = HostSources | HostTopology | HostName | Iterable[HostName]


@dataclass(frozen=True)
class Host(HostSources):
    """A host as its sources describe it: tables, files, a capture, libvirt.

    Every function that takes a host takes this, a :class:`~vmm_msi.types.HostTopology`, or the
    names that :func:`load_host` takes.
    """

    def to_json(self) -> TopologyDocument:
        """Return the document that ``vmm-msi topology show --format json`` prints."""
        from vmm_msi.report import topology

        return topology.to_json(self.topology, self.disagreements)


def load_host(
    host: HostName | Iterable[HostName], granule: Granule | str | int | None = None
) -> Host:
    """Read a host by one name or several.

    :param host: a ``.toml`` file, a device tree blob, a folder with ACPI tables or laid out like
        the host's ``/``, a capture (``.tar.zst``) or another form that ``vmm-msi topology show
        --help`` lists, or a libvirt URI. Several are sources about one host, the most trusted
        first.
    :param granule: page size of the host's kernel, such as ``"64K"`` or 65536, used if no source
        reports it; default: 4K.
    :raise TopologyError: when a source has none of these forms, cannot be read or is malformed, or
        when two describe different hosts.
    :raise ScenarioError: when it is a TOML file with an error.
    :raise UsageError: for no name, or a value that is not a name.
    :raise InputError: when ``granule`` is not a page size.
    :raise HypervisorError: when the libvirt of a URI cannot be queried.
    """
    names = _names(host)
    if not names:
        raise UsageError("reading a host: no name; name a file, a folder, a capture or a URI")
    return read_host(names, page_size(granule))


def load_live() -> Host:
    """Read this machine, with its kernel's page size.

    Only root can read the firmware's tables.

    :raise UsageError: when it has neither an IORT nor a device tree with an SMMU or an ITS.
    :raise TopologyError: when its tables cannot be read or are malformed.
    """
    host = read_host()
    sources.check_this_machine(host.topology)
    return host


def topology(host: AnyHost | None = None, granule: Granule | str | int | None = None) -> Host:
    """Return a host like :func:`load_host`; this machine if none is named.

    :raise VmmMsiError: as :func:`load_host` and :func:`load_live`.
    """
    return load_live() if host is None else any_host(host, granule)


def any_host(host: AnyHost, granule: Granule | str | int | None = None) -> Host:
    """Return a host that was read before, or read it by its names.

    :raise VmmMsiError: as :func:`load_host`.
    """
    if isinstance(host, Host):
        return host
    if isinstance(host, HostSources):
        return Host(host.name, host.sources, host.trees)
    if isinstance(host, HostTopology):
        return Host(host.source, (host,))
    return load_host(host, granule)


def read_host(
    names: Iterable[Path | str] = (),
    granule: Granule | None = None,
    root: Path | None = None,
    load_plugins: Callable[[], PluginManager] | None = None,
) -> Host:
    """Read every HOST that is named; this machine if none is.

    :param load_plugins: loads the plugins whose host readers read a file of another form; None for
        all that are installed.

    :raise VmmMsiError: as :func:`vmm_msi.host.sources.read_host`.
    :raise HypervisorError: when the libvirt of a URI cannot be queried.
    """

    def read_other(path: str, content: bytes) -> HostTopology | None:
        if not others_installed():
            return None
        from vmm_msi.plugins import answers
        from vmm_msi.plugins.manager import PluginManager

        return answers.read_host((load_plugins or PluginManager.load)(), path, content)

    read = sources.read_host(
        tuple(names), granule, root=root, ask_libvirt=_ask_libvirt, read_other=read_other
    )
    return Host(read.name, read.sources, read.trees)


def _names(host: object) -> tuple[Path | str, ...]:
    if isinstance(host, str | os.PathLike) or not isinstance(host, Iterable):
        return (_name(host),)
    return tuple(map(_name, host))


def _name(value: object) -> Path | str:
    if isinstance(value, str) and "://" in value and "\0" not in value:
        return value
    return file_path("host", value)


def _ask_libvirt(uri: str) -> HostTopology:
    """Return the PCI functions that the libvirt at ``uri`` lists."""
    from vmm_msi.libvirt_driver import connect
    from vmm_msi.libvirt_driver.node_devices import host_of

    with connect(uri, readonly=True) as connection:
        return host_of(connection)
