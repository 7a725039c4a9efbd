"""Read the case that the doctor examines: host files, guest definition and libvirt.

The one reader of a :class:`~vmm_msi.doctor.case.Case`. Without a guest and libvirt it loads neither
lxml nor libvirt.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.doctor.case import Case, Guest, KernelFacts, Software
from vmm_msi.doctor.devices import assignable, representatives, with_routed
from vmm_msi.errors import UsageError
from vmm_msi.host.join import host_of_functions, join
from vmm_msi.types import BinderKind, HostTopology

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm_msi.config import Choice, Config
    from vmm_msi.doctor.finding import Evidence
    from vmm_msi.domxml.support import Version
    from vmm_msi.host.sources import HostSources
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import PciAddress, PciFunction


@dataclass(frozen=True)
class Selection:
    """What to examine on a host.

    :param devices: the devices to examine; none for those of the guest, without a guest all that
        could be assigned, and if no source lists any, one per SMMU and ITS group of a PCI segment.
    :param domain: a libvirt domain by name or UUID, or a document that
        :func:`vmm_msi.domxml.document.is_document` recognises.
    :param uri: the libvirt to query; None for none.
    :param choice: the strategy to check; None for those of the record and the configuration.
    :param plugins: the loaded strategies; None to run no rule about strategies.
    :param rules: the plugins whose doctor rules run; None for those of ``plugins``.
    :param libvirt: the release to check instead of that of the queried libvirt.
    :param qemu: the release of QEMU to check instead.
    """

    devices: Sequence[PciAddress] = ()
    domain: str | None = None
    uri: str | None = None
    choice: Choice | None = None
    plugins: PluginManager | None = None
    config: Config | None = None
    libvirt: Version | None = None
    qemu: Version | None = None
    rules: PluginManager | None = None


def read_case(sources: HostSources, selection: Selection | None = None) -> Case:
    """Read what the doctor examines; libvirt is queried on a read-only connection.

    :param selection: None for the host and all its devices.
    :raise UsageError: for the name of a domain without a libvirt to query.
    :raise InputError: if a file of the host is malformed.
    :raise DomainXmlError: if the guest's file or definition cannot be read.
    :raise HypervisorError: if libvirt cannot be queried or has no such domain.
    """
    selected = selection or Selection()
    host = sources.topology
    software = Software()
    unlisted: tuple[PciAddress, ...] = ()
    with ExitStack() as stack:
        connection: Connection | None = None
        if selected.domain is not None:
            from vmm_msi.domxml.document import named_in_libvirt

            stack.enter_context(named_in_libvirt(selected.domain))
        if selected.uri is not None:
            from vmm_msi.libvirt_driver import connect

            connection = stack.enter_context(connect(selected.uri, readonly=True))
        guest = None if selected.domain is None else _guest(selected.domain, connection)
        devices = tuple(selected.devices) or _devices(host, guest)
        host = with_routed(host, devices)
        if connection is not None:
            from vmm_msi.doctor.software import query_libvirt
            from vmm_msi.libvirt_driver.node_devices import related_nodes

            nodes = related_nodes(connection, devices)
            host = with_nodes(host, connection.uri, nodes)
            software = query_libvirt(connection)
            unlisted = tuple(device for device in devices if device not in nodes)
    case = Case(
        host=host,
        software=software,
        guest=guest,
        devices=devices,
        devices_selected=bool(selected.devices) or guest is not None,
        choice=selected.choice,
        plugins=selected.plugins,
        rules=selected.rules,
        config=selected.config,
        disagreements=sources.disagreements,
    )
    if unlisted and software.driver == "QEMU":
        case = with_unlisted(case, unlisted)
    case = _with_host_files(case, sources)
    software = case.software
    return replace(
        case,
        software=replace(
            software,
            libvirt=selected.libvirt or software.libvirt,
            qemu=selected.qemu or software.qemu,
            named=frozenset(
                name for name in ("libvirt", "qemu") if getattr(selected, name) is not None
            ),
        ),
    )


def host_case(host: HostTopology | HostSources) -> Case:
    """Return the case of a host alone, with what its files report, if ``host`` has them.

    :raise InputError: if a file of the host is malformed.
    """
    if isinstance(host, HostTopology):
        return Case(host)
    case = Case(host.topology, disagreements=host.disagreements)
    return _with_host_files(case, host)


def with_nodes(
    host: HostTopology, source: str, nodes: Mapping[PciAddress, PciFunction]
) -> HostTopology:
    """Return ``host`` with what libvirt reports of its devices; its own sources take precedence.

    A driver is that of now: if libvirt names another one, the host's source is outdated.

    :param source: what messages call libvirt.
    """
    functions = tuple(_with_driver(f, nodes.get(f.address)) for f in host.functions)
    current = replace(host, functions=functions)
    return join((current, host_of_functions(source, nodes.values())), host.source)


def _with_driver(function: PciFunction, node: PciFunction | None) -> PciFunction:
    if node is None or node.driver in {None, function.driver}:
        return function
    return replace(function, driver=node.driver, vfio=None)


def with_unlisted(case: Case, unlisted: tuple[PciAddress, ...]) -> Case:
    """Return ``case`` with the devices that libvirt does not list, if QEMU is to use them."""
    from vmm_msi.doctor import simulated

    is_used = simulated.binder_of(case) is BinderKind.QEMU
    return replace(case, unlisted=unlisted) if is_used else case


def _with_host_files(case: Case, sources: HostSources) -> Case:
    """Add what the host's own files report; releases that libvirt reported take precedence."""
    if sources.tree is None:
        return case
    from vmm_msi.doctor.facts import read_kernel, read_software

    unreadable: list[Evidence] = []
    kernel: KernelFacts = read_kernel(sources.tree, case.host, unreadable)
    software = read_software(sources.tree, unreadable)
    if case.software.libvirt is not None:
        limit = software.daemon_locked_memory
        software = replace(case.software, daemon_locked_memory=limit)
    return replace(
        case, tree=sources.tree, kernel=kernel, software=software, unreadable=tuple(unreadable)
    )


def _guest(name: str, connection: Connection | None) -> Guest:
    from vmm_msi.domxml.document import is_document, read_document

    holders = () if connection is None else connection.assigned()
    if is_document(name):
        return Guest.of_author(read_document(name), holders)
    if connection is None:
        raise UsageError(
            f"reading guest {name}: no libvirt to query; name one with --connect, or a file by a "
            "name with a slash or .xml"
        )
    return Guest(connection.domain_xml(name), None, holders)


def _devices(host: HostTopology, guest: Guest | None) -> tuple[PciAddress, ...]:
    if guest is not None:
        return tuple(dict.fromkeys(hostdev.host for hostdev in guest.placement.hostdevs))
    return assignable(host) or representatives(host)
