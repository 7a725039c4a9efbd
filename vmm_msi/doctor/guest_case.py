"""Put a case together: a host that was read, a guest of libvirt or of a file, what libvirt says."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.doctor.case import Case, Guest, Software
from vmm_msi.doctor.devices import assignable, representatives, with_routed
from vmm_msi.domxml.parse import MAX_BYTES
from vmm_msi.errors import DomainXmlError, UsageError
from vmm_msi.host.join import host_of_functions, join
from vmm_msi.provision import definition_file
from vmm_msi.provision.libvirt_facts import known_nodes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_msi.config import Choice, Config
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import HostTopology, PciAddress, PciFunction

#: How a domain is told from a file with one.
XML_SUFFIX = ".xml"


def case_of(
    host: HostTopology,
    domain: str | None,
    uri: str | None,
    choice: Choice | None,
    devices: Sequence[PciAddress],
    plugins: PluginManager,
    config: Config,
) -> Case:
    """Return what guest and libvirt tell; libvirt is asked on a read-only connection.

    What the host's own files tell is added by :func:`vmm_msi.doctor.host_case.with_host_facts`.

    :param domain: a guest of libvirt's by name or UUID, or a file that ends in ``.xml``.
    :param uri: where libvirt is; None for no libvirt.
    :param devices: the devices that are meant; by default those of the guest, and without a guest
        all that could be assigned.
    :raise UsageError: for a guest of libvirt's where no libvirt is named.
    :raise DomainXmlError: when the file, or what libvirt says of the guest, cannot be read.
    :raise HypervisorError: when libvirt cannot be asked or has no such guest.
    """
    software = Software()
    with ExitStack() as stack:
        connection: Connection | None = None
        if uri is not None:
            from vmm_msi.libvirt_driver import connect

            connection = stack.enter_context(connect(uri, readonly=True))
        guest = None if domain is None else _guest(domain, connection)
        meant = tuple(devices) or _devices(host, guest)
        host = with_routed(host, meant)
        if connection is not None:
            host = _with_nodes(host, connection, meant)
            software = _software(connection)
    return Case(
        host=host,
        software=software,
        guest=guest,
        devices=meant,
        devices_selected=bool(devices) or guest is not None,
        choice=choice,
        plugins=plugins,
        config=config,
    )


def _guest(domain: str, connection: Connection | None) -> Guest:
    holders = () if connection is None else connection.assigned()
    if domain.endswith(XML_SUFFIX):
        written = _read(Path(domain))
        return Guest(written, written, holders)
    if connection is None:
        raise UsageError(
            f"looking at guest {domain}: no libvirt is named; name one with --connect, or a file "
            f"that ends in {XML_SUFFIX}"
        )
    return Guest(connection.domain_xml(domain), None, holders)


def _read(path: Path) -> DomainXml:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DomainXmlError(
            f"reading {str(path)!r}: {reason}; valid is a file with a libvirt domain XML"
        ) from error
    return definition_file.read(data, str(path))


def _devices(host: HostTopology, guest: Guest | None) -> tuple[PciAddress, ...]:
    if guest is not None:
        return tuple(dict.fromkeys(hostdev.host for hostdev in guest.xml.hostdevs()))
    return assignable(host) or representatives(host)


def _with_nodes(
    host: HostTopology, connection: Connection, devices: Iterable[PciAddress]
) -> HostTopology:
    """Add what libvirt knows of the devices, of their groups and of their other functions.

    What the host's own sources tell of a function is believed.
    """
    found: dict[PciAddress, PciFunction] = {}
    asked: set[PciAddress] = set()
    wanted = set(devices)
    while wanted:
        nodes = known_nodes(connection, sorted(wanted))
        asked |= wanted
        found |= nodes
        wanted = {near for node in nodes.values() for near in _near(node)} - asked
    told = host_of_functions(connection.uri, found.values())
    return join((host, told), host.source)


def _near(function: PciFunction) -> Iterable[PciAddress]:
    physical = function.physical_function
    return (*function.members, *((physical,) if physical else ()), *function.virtual_functions)


def _software(connection: Connection) -> Software:
    """Return the releases that libvirt tells of.

    Its domain capabilities it tells nobody who may only read (virConnectGetDomainCapabilities).
    """
    versions = connection.versions()
    return Software(
        libvirt=versions.libvirt,
        qemu=versions.hypervisor,
        driver=versions.driver,
        source=f"libvirt at {connection.uri}",
    )
