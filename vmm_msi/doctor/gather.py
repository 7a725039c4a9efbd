"""Put a case together: a host that was read, a guest of libvirt or of a file, what libvirt says."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.doctor.case import Case, Guest, Kernel, Software
from vmm_msi.domxml.parse import MAX_BYTES
from vmm_msi.errors import DomainXmlError, UsageError
from vmm_msi.provision import files
from vmm_msi.provision.surroundings import known_nodes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_msi.config import Choice, Config
    from vmm_msi.domxml.domain import DomainXml
    from vmm_msi.host import PluginHost
    from vmm_msi.hosttree import HostTree
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.model import HostTopology, PciAddress, PciFunction

#: How a domain is told from a file with one.
XML_SUFFIX = ".xml"


def case_of(
    host: HostTopology,
    tree: HostTree | None,
    domain: str | None,
    uri: str | None,
    choice: Choice | None,
    devices: Sequence[PciAddress],
    plugins: PluginHost,
    config: Config,
) -> Case:
    """Return all that rules look at; libvirt is asked on a read-only connection.

    :param tree: the host's files, where it is known by them.
    :param domain: a guest of libvirt's by name or UUID, or a file that ends in ``.xml``.
    :param uri: where libvirt is; None for no libvirt.
    :param devices: the devices that are meant; by default those of the guest, and without a guest
        all that could be assigned.
    :raise UsageError: for a guest of libvirt's where no libvirt is named.
    :raise DomainXmlError: when the file, or what libvirt says of the guest, cannot be read.
    :raise HypervisorError: when libvirt cannot be asked or has no such guest.
    """
    kernel, software = _facts(host, tree)
    with ExitStack() as stack:
        connection: Connection | None = None
        if uri is not None:
            from vmm_msi.libvirt_driver import connect

            connection = stack.enter_context(connect(uri, readonly=True))
        guest = None if domain is None else _guest(domain, connection)
        meant = tuple(devices) or _devices(host, guest)
        if connection is not None:
            host = _with_nodes(host, connection, meant)
            software = _software(software, connection)
    return Case(
        host=host,
        tree=tree,
        kernel=kernel,
        software=software,
        guest=guest,
        devices=meant,
        choice=choice,
        plugins=plugins,
        config=config,
    )


def _facts(host: HostTopology, tree: HostTree | None) -> tuple[Kernel, Software]:
    if tree is None:
        return Kernel(), Software()
    facts = import_module("vmm_msi.doctor.facts")
    return facts.read_kernel(tree, host), facts.read_software(tree)


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
    return files.read(data, str(path))


def _devices(host: HostTopology, guest: Guest | None) -> tuple[PciAddress, ...]:
    if guest is not None:
        return tuple(dict.fromkeys(hostdev.host for hostdev in guest.xml.hostdevs()))
    if host.functions:
        return tuple(each.address for each in host.functions if not each.is_bridge)
    return tuple(device.address for device in host.devices)


def _with_nodes(
    host: HostTopology, connection: Connection, devices: Iterable[PciAddress]
) -> HostTopology:
    """Add what libvirt knows of the devices, of their groups and of their other functions.

    Of a function that the host's own files tell of, they are believed.
    """
    found = dict(host.function_by_address)
    wanted = set(devices)
    while missing := sorted(wanted - found.keys()):
        nodes = known_nodes(connection, missing)
        found |= nodes
        wanted = {near for node in nodes.values() for near in _near(node)} - set(missing)
    return replace(host, functions=tuple(found[address] for address in sorted(found)))


def _near(function: PciFunction) -> Iterable[PciAddress]:
    physical = function.physical_function
    return (*function.members, *((physical,) if physical else ()), *function.virtual_functions)


def _software(told: Software, connection: Connection) -> Software:
    """Return the releases that libvirt tells of.

    Its domain capabilities it tells nobody who may only read (virConnectGetDomainCapabilities).
    """
    versions = connection.versions()
    return replace(
        told,
        libvirt=versions.libvirt,
        qemu=versions.hypervisor,
        driver=versions.driver,
        said_by=f"libvirt at {connection.uri}",
    )
