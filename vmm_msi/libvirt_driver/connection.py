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

from vmm_msi.domxml.domcaps import DomainCaps, read_domain_caps
from vmm_msi.domxml.guest_state import GuestState
from vmm_msi.domxml.hostcaps import read_page_size
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.nodedev import node_name, read_node_device, read_pci_function
from vmm_msi.domxml.parse import parse
from vmm_msi.domxml.support import Version, Versions
from vmm_msi.errors import HypervisorError, NoHostDeviceError
from vmm_msi.libvirt_driver.libvirt_errors import ignore, translate, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vmm_msi.types import Granule, PciAddress, PciFunction

#: How many names an error message lists at most.
_NAMES = 8

# No such device of the host, and no node device driver to ask.
_NO_DEVICE = (libvirt.VIR_ERR_NO_NODE_DEVICE, libvirt.VIR_ERR_NO_SUPPORT)

_PCI_DEVICES = libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV
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
    """A connection; made by :func:`connect`, or around one that the caller has open.

    Guests are named by name or UUID. Every method raises :class:`HypervisorError` when libvirt
    refuses or the guest does not exist. It may be used by several threads, as libvirt's own may
    (https://libvirt.org/threads.html).

    :param raw: a ``libvirt.virConnect``; the caller closes it.
    :param uri: how messages name it; libvirt's own name for it where it is None.
    :param readonly: it was opened by ``openReadOnly``.
    """

    def __init__(self, raw: Any, uri: str | None = None, *, readonly: bool = False) -> None:  # noqa: ANN401
        self._raw = raw
        self.readonly = readonly
        if uri is None:
            with translated("asking a libvirt connection for its URI"):
                uri = str(raw.getURI())
        self.uri = uri
        self._hostname: str | None = None

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

    def state(self, name: str) -> GuestState:
        """Return what libvirt says of a guest as a whole."""
        domain = self._lookup(name)
        doing = f"asking {self.uri} about guest {name}"
        secure = 0 if self.readonly else libvirt.VIR_DOMAIN_XML_SECURE
        with translated(doing):
            text = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | secure)
            live = domain.XMLDesc(secure) if domain.isActive() else None
            persistent = bool(domain.isPersistent())
            saved = self._unless_unsupported(lambda: domain.hasManagedSaveImage(0), 0)
            snapshots = self._unless_unsupported(lambda: domain.snapshotNum(0), 0)
        source = f"guest {name} at {self.uri}"
        return GuestState(
            definition=DomainXml.parse(text, source),
            running=None if live is None else DomainXml.parse(live, source),
            persistent=persistent,
            saved=bool(saved),
            snapshots=snapshots,
        )

    def hostname(self) -> str:
        """Return the name of the machine that the daemon runs on."""
        if self._hostname is None:
            with translated(f"asking {self.uri} for its machine"):
                self._hostname = str(self._raw.getHostname())
        return self._hostname

    def assigned(self) -> list[tuple[PciAddress, str]]:
        """Return the host devices that guests have, and which guest.

        What a guest has is what its definition assigns and what it runs with.
        """
        found = set()
        with translated(f"listing the guests at {self.uri}"):
            for domain in self._raw.listAllDomains(0):
                # The id came with the list; one that does not run has none.
                runs = domain.ID() != -1
                try:
                    texts = [domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)]
                    texts += [domain.XMLDesc(0)] if runs else []
                except libvirt.libvirtError as error:
                    if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                        continue  # it went away since the list was made
                    raise
                for text in texts:
                    if "hostdev" in text:
                        guest = DomainXml.parse(text, f"guest {domain.name()} at {self.uri}")
                        found |= {(hostdev.host, guest.name) for hostdev in guest.hostdevs()}
        return sorted(found)

    def define(self, xml: DomainXml, *, validate: bool = True) -> DomainXml:
        """Define a guest, or replace its definition, and return what libvirt made of it.

        :return: ``xml`` itself where libvirt gives back the same text.
        :param validate: see :meth:`define_text`.
        """
        text = str(xml)
        echo = self.define_text(xml.name, text, validate=validate)
        return xml if echo == text else DomainXml.parse(echo, f"guest {xml.name} at {self.uri}")

    def define_text(self, name: str, text: str, *, validate: bool = True) -> str:
        """Define the guest called ``name``, and return the text that libvirt made of ``text``.

        :param validate: check it against libvirt's schema first. Without, libvirt drops what it
            does not know and says nothing.
        """
        flags = libvirt.VIR_DOMAIN_DEFINE_VALIDATE if validate else 0
        with translated(f"defining guest {name} at {self.uri}"):
            defined = self._raw.defineXMLFlags(text, flags)
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        with translated(f"reading the XML of guest {name} at {self.uri}"):
            return str(defined.XMLDesc(flags))

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

    def capabilities_for(self, xml: DomainXml) -> DomainCaps:
        """Return what the hypervisor can do for a guest of that emulator, machine and type.

        https://libvirt.org/html/libvirt-libvirt-domain.html#virConnectGetDomainCapabilities
        """
        with translated(f"asking {self.uri} what it can do for guest {xml.name}"):
            text = self._raw.getDomainCapabilities(
                xml.emulator, xml.arch, xml.machine, xml.type or None, 0
            )
        return read_domain_caps(parse(text, f"domain capabilities of {self.uri}"))

    def plug(self, name: str, device: str) -> None:
        """Plug a device into a running guest; its definition stays.

        :param device: the device's XML, with the address it is to have.
        """
        domain = self._lookup(name)
        with translated(f"plugging a device into the running guest {name} at {self.uri}"):
            domain.attachDeviceFlags(device, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def unplug(self, name: str, device: str) -> None:
        """Ask a running guest to give a device back; its definition stays.

        The guest may take its time or refuse: the device is out when it is out of the live XML.
        """
        domain = self._lookup(name)
        with translated(f"unplugging a device from the running guest {name} at {self.uri}"):
            domain.detachDeviceFlags(device, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def pass_fds(self, name: str, group: str, fds: Sequence[int]) -> None:
        """Hand open files over that the XML of a guest names as a group.

        libvirt keeps copies for as long as this connection is open, and the hypervisor for as long
        as it needs them; the caller may close its own:
        https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainFDAssociate.

        :param group: the ``fdgroup`` in the XML.
        """
        domain = self._lookup(name)
        with translated(f"handing {group} over to guest {name} at {self.uri}"):
            domain.FDAssociate(group, list(fds), 0)

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

    def node_device(self, host: PciAddress) -> PciFunction:
        """Return what libvirt knows of the host's device at ``host``.

        :raise NoHostDeviceError: when it knows none there, or has no node device driver.
        """
        name = node_name(host)
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

    def pci_functions(self) -> list[PciFunction]:
        """Return what libvirt knows of all PCI devices of the host.

        https://libvirt.org/html/libvirt-libvirt-nodedev.html#virConnectListAllNodeDevices
        """
        found = []
        doing = f"listing the host devices at {self.uri}"
        with translated(doing):
            for device in self._raw.listAllDevices(_PCI_DEVICES):
                try:
                    text = device.XMLDesc(0)
                except libvirt.libvirtError as error:
                    if error.get_error_code() == libvirt.VIR_ERR_NO_NODE_DEVICE:
                        continue  # it went away since the list was made
                    raise
                source = f"host device {device.name()} at {self.uri}"
                found.append(read_pci_function(parse(text, source), source))
        return sorted(found, key=lambda function: function.address)

    def page_size(self) -> Granule | None:
        """Return the page size of the host's kernel; None where libvirt does not say."""
        with translated(f"asking {self.uri} for its capabilities"):
            text = self._raw.getCapabilities()
        return read_page_size(parse(text, f"capabilities of {self.uri}"))

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

    @staticmethod
    def _unless_unsupported(ask: Callable[[], int], otherwise: int) -> int:
        """Return what ``ask`` returns, ``otherwise`` where the driver has no such call."""
        try:
            return int(ask())
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
        return otherwise

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
        """Tell whether the connection stands; one that broke is noticed by the call that fails."""
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
