"""A connection to libvirt, and what is asked of it.

Guests and devices come as their XML, read by ``domxml``; errors as one line (``errors``).
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import libvirt

from vmm_msi.domxml.domain import DomainXml
from vmm_msi.domxml.nodedev import NodeDevice, read_node_device
from vmm_msi.domxml.parse import parse
from vmm_msi.domxml.support import Version, Versions
from vmm_msi.errors import HypervisorError, NoHostDeviceError
from vmm_msi.libvirt_driver.errors import ignore, translate, translated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vmm_msi.model import PciAddress

#: How many names an error message lists at most.
_NAMES = 8

# No such device of the host, and no node device driver to ask.
_NO_DEVICE = (libvirt.VIR_ERR_NO_NODE_DEVICE, libvirt.VIR_ERR_NO_SUPPORT)

_NOT_RUNNING = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
# The first tag of a guest that runs.
_RUNS = re.compile(r"<domain [^>]*\bid=['\"]")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@contextmanager
def connect(uri: str, *, readonly: bool = False) -> Iterator[Connection]:
    """Connect to libvirt and close the connection at the end.

    :param uri: a libvirt URI, https://libvirt.org/uri.html.
    :raise HypervisorError: when nobody answers there.
    """
    # libvirt prints every error on standard error unless it is told where to put them.
    libvirt.registerErrorHandler(ignore, None)
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
    with translated(doing):
        raw = libvirt.openReadOnly(uri) if readonly else libvirt.open(uri)
    try:
        yield Connection(raw, uri, readonly=readonly)
    finally:
        with translated(f"closing {uri}"):
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
        with translated(f"asking {self.uri} for its versions"):
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
        with translated(f"reading the XML of guest {name} at {self.uri}"):
            text = domain.XMLDesc(flags)
        return DomainXml.parse(text, f"guest {name} at {self.uri}")

    def assigned(self) -> list[tuple[PciAddress, str]]:
        """Return the host devices that the definitions of all guests assign, and to which guest."""
        found = []
        with translated(f"listing the guests at {self.uri}"):
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
        with translated(f"defining guest {xml.name} at {self.uri}"):
            defined = self._raw.defineXMLFlags(text, flags)
        with translated(f"reading the XML of guest {xml.name} at {self.uri}"):
            echo = defined.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        return xml if echo == text else DomainXml.parse(echo, f"guest {xml.name} at {self.uri}")

    def undefine(self, name: str) -> None:
        """Remove the definition of a guest, and on QEMU the file of its UEFI variables."""
        domain = self._lookup(name)
        with translated(f"undefining guest {name} at {self.uri}"):
            qemu = self._raw.getType() == "QEMU"
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM if qemu else 0)

    def is_active(self, name: str) -> bool:
        """Tell whether a guest runs."""
        domain = self._lookup(name)
        with translated(f"asking whether guest {name} at {self.uri} runs"):
            return bool(domain.isActive())

    def start(self, name: str) -> None:
        """Start a guest."""
        domain = self._lookup(name)
        with translated(f"starting guest {name} at {self.uri}"):
            domain.create()

    def destroy(self, name: str) -> None:
        """Stop a guest at once, as if its power were cut."""
        domain = self._lookup(name)
        with translated(f"stopping guest {name} at {self.uri}"):
            domain.destroy()

    def node_device(self, host: PciAddress) -> NodeDevice:
        """Return what libvirt knows of the host's device at ``host``.

        :raise NoHostDeviceError: when it knows none there, or has no node device driver.
        """
        name = f"pci_{host.segment:04x}_{host.bus:02x}_{host.device:02x}_{host.function}"
        doing = f"looking for host device {host} at {self.uri}"
        try:
            with translated(doing):
                text = self._raw.nodeDeviceLookupByName(name).XMLDesc(0)
        except HypervisorError as error:
            cause = error.__cause__
            if isinstance(cause, libvirt.libvirtError) and cause.get_error_code() in _NO_DEVICE:
                raise NoHostDeviceError(str(error)) from cause
            raise
        return read_node_device(parse(text, f"host device {host} at {self.uri}"), host)

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
        with translated(f"running {command} on guest {name} at {self.uri}"):
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
                raise translate(f"looking for guest {name} at {self.uri}", error) from error
        if _UUID.fullmatch(name):
            try:
                return self._raw.lookupByUUIDString(name)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise translate(f"looking for guest {name} at {self.uri}", error) from error
        raise HypervisorError(
            f"looking for guest {name} at {self.uri}: there is none; valid: {self._names()}"
        )

    def _names(self) -> str:
        with translated(f"listing the guests at {self.uri}"):
            names = sorted(str(domain.name()) for domain in self._raw.listAllDomains(0))
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        return (", ".join(names[:_NAMES]) or "none, no guest is defined there") + more

    # What runs now, by UUID: guests come and go between two calls, which is no error here.

    def is_alive(self) -> bool:
        """Tell whether the connection still stands."""
        try:
            return bool(self._raw.isAlive())
        except libvirt.libvirtError:
            return False

    def running(self) -> list[str]:
        """Return the UUIDs of the guests that run."""
        with translated(f"listing the guests at {self.uri}"):
            active = self._raw.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            return [str(domain.UUIDString()) for domain in active]

    def live_text(self, uuid: str) -> str | None:
        """Return the XML of a guest as it runs, without its secrets; None when it does not run."""
        try:
            domain = self._raw.lookupByUUIDString(uuid)
            text = str(domain.XMLDesc(0))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise translate(f"reading the XML of guest {uuid} at {self.uri}", error) from error
        # For one that is shut off libvirt returns its definition, which has no id.
        return text if _RUNS.match(text) else None

    def set_live_metadata(self, uuid: str, namespace: str, prefix: str, xml: str | None) -> bool:
        """Put an element into the metadata of a guest's run, in the place of the one there.

        https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainSetMetadata

        :param prefix: the prefix that libvirt gives ``namespace``.
        :param xml: the element without a namespace; None takes out the one that is there.
        :return: whether it runs: the element of a guest that stopped is gone with its run.
        """
        doing = f"writing the live metadata of guest {uuid} at {self.uri}"
        kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
        try:
            domain = self._raw.lookupByUUIDString(uuid)
            domain.setMetadata(kind, xml, prefix, namespace, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            # The second: it does not run (virDomainObjUpdateModificationImpact in libvirt).
            if error.get_error_code() in _NOT_RUNNING:
                return False
            raise translate(doing, error) from error
        return True
