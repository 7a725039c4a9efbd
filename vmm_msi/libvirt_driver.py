"""libvirt, behind a few typed calls: the only module that imports it.

Errors of libvirt are translated once, here, by code (https://libvirt.org/html/libvirt-virterror.html)
into :class:`HypervisorError`, one line that names the connection or the guest.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import libvirt

from vmm_msi.domxml import owned
from vmm_msi.domxml.domain import DomainXml
from vmm_msi.domxml.parse import parse
from vmm_msi.domxml.support import Support, Version
from vmm_msi.errors import HypervisorError, InputError, NoHostDeviceError
from vmm_msi.model import PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lxml.etree import _Element as Element

#: How many names an error message lists at most.
_NAMES = 8

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

# No such device of the host, and no node device driver to ask.
_NO_DEVICE = (libvirt.VIR_ERR_NO_NODE_DEVICE, libvirt.VIR_ERR_NO_SUPPORT)

# What would be valid, by error code; other codes speak for themselves.
_ADVICE = {
    libvirt.VIR_ERR_NO_CONNECT: "valid is a libvirt URI such as qemu:///system or test:///default",
    libvirt.VIR_ERR_SYSTEM_ERROR: "is the libvirt daemon of that URI running?",
    libvirt.VIR_ERR_RPC: "is the libvirt daemon of that URI running?",
    libvirt.VIR_ERR_AUTH_FAILED: "log in as a user that libvirt accepts",
    libvirt.VIR_ERR_AUTH_CANCELLED: "log in as a user that libvirt accepts",
    libvirt.VIR_ERR_AUTH_UNAVAILABLE: "log in as a user that libvirt accepts",
    libvirt.VIR_ERR_ACCESS_DENIED: "ask for the right to do that in libvirt's polkit rules",
    libvirt.VIR_ERR_OPERATION_DENIED: "connect for reading and writing",
    libvirt.VIR_ERR_NO_SUPPORT: "this driver of libvirt cannot do that",
    libvirt.VIR_ERR_XML_INVALID_SCHEMA: "valid is what this libvirt's schemas allow",
}


@dataclass(frozen=True, slots=True)
class Versions:
    """Who answers on a connection.

    :param driver: libvirt's name of the driver: ``QEMU``, ``TEST``.
    :param libvirt: release of the daemon, not of the library here.
    :param hypervisor: release of QEMU; None for other drivers.
    """

    driver: str
    libvirt: Version
    hypervisor: Version | None

    @property
    def support(self) -> Support:
        """What the connection can carry."""
        return Support(self.libvirt, self.hypervisor)


@dataclass(frozen=True, slots=True)
class NodeDevice:
    """A PCI device of the host as libvirt's node device driver sees it.

    https://libvirt.org/formatnode.html

    :param iommu_group: number of its IOMMU group; None where the host has no IOMMU.
    :param members: all devices of that group.
    :param numa_node: host NUMA node; None where the host does not say.
    :param driver: kernel driver that is bound to it.
    """

    address: PciAddress
    iommu_group: int | None = None
    members: tuple[PciAddress, ...] = ()
    numa_node: int | None = None
    driver: str | None = None


@contextmanager
def connect(uri: str, *, readonly: bool = False) -> Iterator[Connection]:
    """Connect to libvirt and close the connection at the end.

    :param uri: a libvirt URI, https://libvirt.org/uri.html.
    :raise HypervisorError: when nobody answers there.
    """
    # libvirt prints every error on standard error unless it is told where to put them.
    libvirt.registerErrorHandler(_ignore, None)
    doing = f"connecting to {uri}"
    parts = urlsplit(uri)
    path = unquote(parts.path)
    # For a missing file libxml2 would print a warning on standard error.
    local = parts.scheme == "test" and not parts.netloc and path != "/default"
    if local and not Path(path).is_file():
        raise HypervisorError(
            f"{doing}: there is no file {path}; valid is test:///default or test:// with the "
            "absolute path of a node file"
        )
    with _translated(doing):
        raw = libvirt.openReadOnly(uri) if readonly else libvirt.open(uri)
    try:
        yield Connection(raw, uri, readonly=readonly)
    finally:
        with _translated(f"closing {uri}"):
            raw.close()


class Connection:
    """A connection; made by :func:`connect`.

    Guests are named by name or UUID. Every method raises :class:`HypervisorError` when libvirt
    refuses or the guest does not exist.
    """

    def __init__(self, raw: Any, uri: str, *, readonly: bool) -> None:  # noqa: ANN401
        self._raw = raw
        self.uri = uri
        self.readonly = readonly

    def versions(self) -> Versions:
        """Return the releases of the daemon and of the hypervisor."""
        with _translated(f"asking {self.uri} for its versions"):
            driver = str(self._raw.getType())
            daemon = Version.from_int(int(self._raw.getLibVersion()))
            hypervisor = Version.from_int(int(self._raw.getVersion())) if driver == "QEMU" else None
        return Versions(driver, daemon, hypervisor)

    def domain_xml(self, name: str, *, inactive: bool = True) -> DomainXml:
        """Return the XML of a guest, with its secrets where the connection may write.

        :param inactive: the definition that the next start uses; else what runs now.
        """
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0
        if not self.readonly:
            flags |= libvirt.VIR_DOMAIN_XML_SECURE
        domain = self._lookup(name)
        with _translated(f"reading the XML of guest {name} at {self.uri}"):
            text = domain.XMLDesc(flags)
        return DomainXml.parse(text, f"guest {name} at {self.uri}")

    def assigned(self) -> list[tuple[PciAddress, str]]:
        """Return the host devices that the definitions of all guests assign, and to which guest."""
        found = []
        with _translated(f"listing the guests at {self.uri}"):
            for domain in self._raw.listAllDomains(0):
                try:
                    text = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
                except libvirt.libvirtError as error:
                    if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                        continue  # it went away since the list was made
                    raise
                if "hostdev" in text:
                    guest = DomainXml.parse(text, f"guest {domain.name()} at {self.uri}")
                    found += [(hostdev.host, guest.name) for hostdev in guest.hostdevs()]
        return sorted(found)

    def define(self, xml: DomainXml, *, validate: bool = True) -> DomainXml:
        """Define a guest, or replace its definition, and return what libvirt made of it.

        :return: ``xml`` itself where libvirt gives back the same text.
        :param validate: check it against libvirt's schema first. Without, libvirt drops what it
            does not know and says nothing.
        """
        flags = libvirt.VIR_DOMAIN_DEFINE_VALIDATE if validate else 0
        text = str(xml)
        with _translated(f"defining guest {xml.name} at {self.uri}"):
            defined = self._raw.defineXMLFlags(text, flags)
        with _translated(f"reading the XML of guest {xml.name} at {self.uri}"):
            echo = defined.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        return xml if echo == text else DomainXml.parse(echo, f"guest {xml.name} at {self.uri}")

    def undefine(self, name: str) -> None:
        """Remove the definition of a guest, and on QEMU the file of its UEFI variables."""
        domain = self._lookup(name)
        with _translated(f"undefining guest {name} at {self.uri}"):
            qemu = self._raw.getType() == "QEMU"
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM if qemu else 0)

    def is_active(self, name: str) -> bool:
        """Tell whether a guest runs."""
        domain = self._lookup(name)
        with _translated(f"asking whether guest {name} at {self.uri} runs"):
            return bool(domain.isActive())

    def start(self, name: str) -> None:
        """Start a guest."""
        domain = self._lookup(name)
        with _translated(f"starting guest {name} at {self.uri}"):
            domain.create()

    def destroy(self, name: str) -> None:
        """Stop a guest at once, as if its power were cut."""
        domain = self._lookup(name)
        with _translated(f"stopping guest {name} at {self.uri}"):
            domain.destroy()

    def node_device(self, host: PciAddress) -> NodeDevice:
        """Return what libvirt knows of the host's device at ``host``.

        :raise NoHostDeviceError: when it knows none there, or has no node device driver.
        """
        name = f"pci_{host.segment:04x}_{host.bus:02x}_{host.device:02x}_{host.function}"
        doing = f"looking for host device {host} at {self.uri}"
        try:
            with _translated(doing):
                text = self._raw.nodeDeviceLookupByName(name).XMLDesc(0)
        except HypervisorError as error:
            cause = error.__cause__
            if isinstance(cause, libvirt.libvirtError) and cause.get_error_code() in _NO_DEVICE:
                raise NoHostDeviceError(str(error)) from cause
            raise
        return _node_device(parse(text, f"host device {host} at {self.uri}"), host)

    def node_devices(self, hosts: Iterable[PciAddress]) -> dict[PciAddress, NodeDevice]:
        """Return what libvirt knows of each of the devices at ``hosts``."""
        return {host: self.node_device(host) for host in hosts}

    def monitor(
        self, name: str, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run a QMP command on a guest of the QEMU driver and return what it returns.

        It goes past libvirt, which marks the guest as tainted:
        https://libvirt.org/html/libvirt-libvirt-qemu.html
        """
        import libvirt_qemu

        domain = self._lookup(name)
        request = json.dumps({"execute": command, "arguments": dict(arguments or {})})
        with _translated(f"running {command} on guest {name} at {self.uri}"):
            reply = json.loads(libvirt_qemu.qemuMonitorCommand(domain, request, 0))
        if "error" in reply:
            raise HypervisorError(
                f"running {command} on guest {name} at {self.uri}: {reply['error'].get('desc')}; "
                "see the QEMU QMP reference for what is valid"
            )
        return reply.get("return")

    def _lookup(self, name: str) -> Any:  # noqa: ANN401
        try:
            return self._raw.lookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise _translate(f"looking for guest {name} at {self.uri}", error) from error
        if _UUID.fullmatch(name):
            try:
                return self._raw.lookupByUUIDString(name)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise _translate(f"looking for guest {name} at {self.uri}", error) from error
        raise HypervisorError(
            f"looking for guest {name} at {self.uri}: there is none; valid: {self._names()}"
        )

    def _names(self) -> str:
        with _translated(f"listing the guests at {self.uri}"):
            names = sorted(str(domain.name()) for domain in self._raw.listAllDomains(0))
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        return (", ".join(names[:_NAMES]) or "none, no guest is defined there") + more


def verify_defined(wanted: DomainXml, got: DomainXml) -> None:
    """Check that libvirt kept all that vmm-msi wrote.

    :param wanted: what was given to libvirt.
    :param got: what it returned afterwards.
    :raise HypervisorError: when something is missing; it names each part.
    """
    lost = owned.dropped(wanted, got)
    if lost:
        raise HypervisorError(
            f"defining guest {wanted.name}: libvirt took the XML and dropped {', '.join(lost)}; "
            "valid is a libvirt that knows these"
        )


def redefine(connection: Connection, name: str, old: DomainXml, new: DomainXml) -> DomainXml:
    """Replace a guest's definition, or leave it as it was.

    :param old: the definition as :meth:`Connection.domain_xml` returned it, secrets included.
    :param new: the one that is wanted; name and UUID are those of ``old``.
    :return: what libvirt made of ``new``.
    :raise HypervisorError: when libvirt refuses ``new`` or drops a part of it. ``old`` is defined
        again first; where even that fails, the message says so.
    """
    if (new.name, new.uuid) != (old.name, old.uuid):
        raise HypervisorError(
            f"defining guest {name}: name and UUID would change from {old.name} {old.uuid} to "
            f"{new.name} {new.uuid}; valid is a definition of the same guest"
        )
    try:
        got = connection.define(new)
        if got is not new:
            verify_defined(new, got)
    except BaseException as failure:
        try:
            connection.define(old, validate=False)
        except HypervisorError as again:
            raise HypervisorError(
                f"{failure}; and putting the old definition back failed too: {again}"
            ) from failure
        raise
    return got


def _node_device(root: Element, host: PciAddress) -> NodeDevice:
    capability = root.find("capability[@type='pci']")
    if capability is None:
        return NodeDevice(host, driver=root.findtext("driver/name"))
    group = capability.find("iommuGroup")
    numa = capability.find("numa")
    try:
        return NodeDevice(
            address=host,
            iommu_group=None if group is None else int(group.get("number", "")),
            members=() if group is None else tuple(map(_address, group.iterfind("address"))),
            numa_node=None if numa is None else int(numa.get("node", "")),
            driver=root.findtext("driver/name"),
        )
    except ValueError as error:
        raise InputError(
            f"reading host device {host}: {error}; valid is libvirt's node device XML"
        ) from None


def _address(element: Element) -> PciAddress:
    names = ("domain", "bus", "slot", "function")
    return PciAddress(*(int(element.get(name, "0"), 0) for name in names))


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        raise _translate(doing, error) from error
    except (SystemError, UnicodeError) as error:
        # The binding decodes libvirt's words, which may quote a file that is not text.
        raise HypervisorError(
            f"{doing}: libvirt's answer is not UTF-8; valid is input that is text"
        ) from error


def _translate(doing: str, error: libvirt.libvirtError) -> HypervisorError:
    what = " ".join(str(error.get_error_message() or error).split())
    advice = _ADVICE.get(error.get_error_code())
    return HypervisorError(f"{doing}: {what}" + (f"; {advice}" if advice else ""))


def _ignore(_context: object, _error: object) -> None:
    """Take an error that libvirt would print; the exception tells it too."""
