"""A connection to libvirt and its typed methods.

Guests and devices are read from their XML by ``domxml``; errors are one line (``libvirt_errors``).
"""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import libvirt

from vmm_msi.arguments import text_value
from vmm_msi.domxml.domcaps import DomainCaps, read_domain_caps
from vmm_msi.domxml.guest_state import GuestState
from vmm_msi.domxml.hostcaps import read_page_size
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.nodedev import node_name, read_node_device, read_pci_function
from vmm_msi.domxml.parse import parse
from vmm_msi.domxml.support import Version, Versions
from vmm_msi.errors import (
    HypervisorError,
    NoHostDeviceError,
    RefusedError,
    UsageError,
    did_you_mean,
)
from vmm_msi.libvirt_driver.libvirt_errors import ignore, translate, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vmm_msi.types import Granule, PciAddress, PciFunction

#: Names in an error message, at most.
_NAMES = 8

# No such device of the host, or no node device driver.
_NO_DEVICE = (libvirt.VIR_ERR_NO_NODE_DEVICE, libvirt.VIR_ERR_NO_SUPPORT)

_PCI_DEVICES = libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV
_NOT_RUNNING = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
# The first tag of a running guest.
_RUNS = re.compile(r"<domain [^>]*\bid=['\"]")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def _as_utf8(text: str) -> str:
    """Return a word of the command line as libvirt takes it: as UTF-8 in every locale.

    Python keeps bytes that the locale does not define as surrogates; those that are not UTF-8
    become escapes, which no guest and no URI has.
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@contextmanager
def connect(uri: str, *, readonly: bool = False) -> Iterator[Connection]:
    """Connect to libvirt during the ``with`` block.

    :param uri: a libvirt URI, https://libvirt.org/uri.html.
    :raise HypervisorError: when the connection fails.
    :raise UsageError: when ``uri`` is not a text, or has a NUL character.
    """
    uri = _as_utf8(text_value("libvirt URI", uri))
    # Without a handler libvirt prints every error on standard error.
    libvirt.registerErrorHandler(ignore, None)
    action = f"connecting to {uri}"
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise HypervisorError(
            f"{action}: {error}; valid is a libvirt URI such as qemu:///system"
        ) from error
    path = unquote(parts.path)
    # For a missing file libxml2 would print a warning on standard error.
    local = parts.scheme == "test" and not parts.netloc and path != "/default"
    if local and not os.path.isfile(path):  # noqa: PTH113 - False for a name that is too long
        raise HypervisorError(
            f"{action}: there is no file {path}; valid is test:///default or test:// with the "
            "absolute path of a node file"
        )
    with translated(action):
        raw = libvirt.openReadOnly(uri) if readonly else libvirt.open(uri)
    try:
        yield Connection(raw, uri, readonly=readonly)
    finally:
        with translated(f"closing {uri}"):
            raw.close()


class Connection:
    """A connection to libvirt, opened by :func:`connect` or by the caller.

    Guests are named by UUID or name; a text that is the UUID of one and the name of another is
    refused. Every method raises :class:`HypervisorError` when libvirt refuses or the guest does not
    exist. Several threads may use it, as libvirt's own connections
    (https://libvirt.org/threads.html).

    :param raw: a ``libvirt.virConnect``; the caller closes it.
    :param uri: its name in messages; None for the URI that libvirt reports.
    :param readonly: it was opened by ``openReadOnly``.
    :raise UsageError: for a URI, which :func:`connect` opens.
    """

    def __init__(self, raw: Any, uri: str | None = None, *, readonly: bool = False) -> None:  # noqa: ANN401
        if isinstance(raw, str):
            raise UsageError(
                f"connection {raw!r}: not an open connection; use vmm_msi.connect for a URI"
            )
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
        """Return the XML of a guest, with its secrets if the connection is writable.

        :param inactive: the definition, for the next start; else the XML of the run.
        """
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0
        if not self.readonly:
            flags |= libvirt.VIR_DOMAIN_XML_SECURE
        domain = self._lookup(name)
        with translated(f"reading the XML of guest {name} at {self.uri}"):
            text = domain.XMLDesc(flags)
        return DomainXml.parse(text, f"guest {name} at {self.uri}")

    def state(self, name: str) -> GuestState:
        """Return the definition, the run and the saved state of a guest."""
        domain = self._lookup(name)
        action = f"asking {self.uri} about guest {name}"
        secure = 0 if self.readonly else libvirt.VIR_DOMAIN_XML_SECURE
        with translated(action):
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
        """Return the host name of the daemon's machine."""
        if self._hostname is None:
            with translated(f"asking {self.uri} for its host name"):
                self._hostname = str(self._raw.getHostname())
        return self._hostname

    def assigned(self) -> list[tuple[PciAddress, str]]:
        """Return the host devices that definitions or runs of guests assign, with the guests."""
        assigned = set()
        with translated(f"listing the guests at {self.uri}"):
            for domain in self._raw.listAllDomains(0):
                # The list contains the id; a guest that is off has none.
                runs = domain.ID() != -1
                try:
                    texts = [domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)]
                    texts += [domain.XMLDesc(0)] if runs else []
                except libvirt.libvirtError as error:
                    if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                        continue  # undefined since the list was made
                    raise
                for text in texts:
                    if "hostdev" in text or "commandline" in text:
                        guest = DomainXml.parse(text, f"guest {domain.name()} at {self.uri}")
                        assigned |= {(hostdev.host, guest.name) for hostdev in guest.assigned()}
        return sorted(assigned)

    def define(self, xml: DomainXml, *, validate: bool = True) -> DomainXml:
        """Define a guest, or replace its definition, and return it as libvirt read it.

        :return: ``xml`` itself if libvirt returns the same text.
        :param validate: see :meth:`define_text`.
        """
        text = str(xml)
        echo = self.define_text(xml.name, text, validate=validate)
        return xml if echo == text else DomainXml.parse(echo, f"guest {xml.name} at {self.uri}")

    def define_text(self, name: str, text: str, *, validate: bool = True) -> str:
        """Define the guest ``name``, and return its definition as libvirt read it.

        :param validate: check the text against libvirt's schema first; without it, libvirt silently
            drops unknown parts.
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

    def names(self) -> list[str]:
        """Return the names of all guests, sorted.

        :raise HypervisorError: when libvirt does not list them.
        """
        with translated(f"listing the guests at {self.uri}"):
            return sorted(str(domain.name()) for domain in self._raw.listAllDomains(0))

    def is_active(self, name: str) -> bool:
        """Return whether a guest runs."""
        domain = self._lookup(name)
        with translated(f"asking whether guest {name} at {self.uri} runs"):
            return bool(domain.isActive())

    def capabilities_for(self, xml: DomainXml) -> DomainCaps:
        """Return the hypervisor's capabilities for a guest of that emulator, machine and type.

        https://libvirt.org/html/libvirt-libvirt-domain.html#virConnectGetDomainCapabilities
        """
        with translated(f"asking {self.uri} for its capabilities for guest {xml.name}"):
            text = self._raw.getDomainCapabilities(
                xml.emulator, xml.arch, xml.machine, xml.type or None, 0
            )
        return read_domain_caps(parse(text, f"domain capabilities of {self.uri}"))

    def plug(self, name: str, device: str) -> None:
        """Plug a device into a running guest; its definition does not change.

        :param device: the device's XML with its guest address.
        """
        domain = self._lookup(name)
        with translated(f"plugging a device into the running guest {name} at {self.uri}"):
            domain.attachDeviceFlags(device, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def unplug(self, name: str, device: str) -> None:
        """Request that a running guest release a device; its definition does not change.

        The guest may delay or refuse: the device is released when the live XML lacks it.
        """
        domain = self._lookup(name)
        with translated(f"unplugging a device from the running guest {name} at {self.uri}"):
            domain.detachDeviceFlags(device, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def pass_fds(self, name: str, group: str, fds: Sequence[int]) -> None:
        """Pass open file descriptors to libvirt, for a group that the XML of a guest names.

        libvirt holds copies while this connection is open, and the hypervisor while it needs them;
        the caller may close its own:
        https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainFDAssociate.

        :param group: the ``fdgroup`` in the XML.
        """
        domain = self._lookup(name)
        with translated(f"passing the FD group {group} to guest {name} at {self.uri}"):
            domain.FDAssociate(group, list(fds), 0)

    def start(self, name: str, *, paused: bool = False) -> None:
        """Start a guest.

        :param paused: leave it before its first instruction, for :meth:`resume`.
        """
        domain = self._lookup(name)
        with translated(f"starting guest {name} at {self.uri}"):
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)

    def resume(self, name: str) -> None:
        """Resume a paused guest."""
        domain = self._lookup(name)
        with translated(f"resuming guest {name} at {self.uri}"):
            domain.resume()

    def destroy(self, name: str) -> None:
        """Stop a guest at once, like a power cut."""
        domain = self._lookup(name)
        with translated(f"stopping guest {name} at {self.uri}"):
            domain.destroy()

    def node_device(self, host: PciAddress) -> PciFunction:
        """Return libvirt's description of the host's device at ``host``.

        :raise NoHostDeviceError: when libvirt has no such device, or no node device driver.
        """
        name = node_name(host)
        try:
            with translated(f"looking for host device {host} at {self.uri}"):
                text = self._raw.nodeDeviceLookupByName(name).XMLDesc(0)
        except HypervisorError as error:
            cause = error.__cause__
            if isinstance(cause, libvirt.libvirtError) and cause.get_error_code() in _NO_DEVICE:
                raise NoHostDeviceError(str(error)) from cause
            raise
        return read_node_device(parse(text, f"host device {host} at {self.uri}"), host)

    def pci_functions(self) -> list[PciFunction]:
        """Return libvirt's descriptions of all PCI devices of the host.

        https://libvirt.org/html/libvirt-libvirt-nodedev.html#virConnectListAllNodeDevices
        """
        functions = []
        with translated(f"listing the host devices at {self.uri}"):
            for device in self._raw.listAllDevices(_PCI_DEVICES):
                try:
                    text = device.XMLDesc(0)
                except libvirt.libvirtError as error:
                    if error.get_error_code() == libvirt.VIR_ERR_NO_NODE_DEVICE:
                        continue  # removed since the list was made
                    raise
                source = f"host device {device.name()} at {self.uri}"
                functions.append(read_pci_function(parse(text, source), source))
        return sorted(functions, key=lambda function: function.address)

    def page_size(self) -> Granule | None:
        """Return the page size of the host's kernel; None if libvirt does not report it."""
        with translated(f"asking {self.uri} for its capabilities"):
            text = self._raw.getCapabilities()
        return read_page_size(parse(text, f"capabilities of {self.uri}"))

    def monitor(
        self, name: str, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run a QMP command on a guest of the QEMU driver and return what it returns.

        It bypasses libvirt, which marks the guest as tainted:
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
                "see the QEMU QMP reference for valid arguments"
            )
        return reply.get("return")

    @staticmethod
    def _unless_unsupported(call: Callable[[], int], default: int) -> int:
        """Return the result of ``call``, or ``default`` if the driver does not support it."""
        try:
            return int(call())
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
        return default

    def _lookup(self, name: str) -> Any:  # noqa: ANN401
        """Return the guest with a UUID or a name.

        :raise RefusedError: if a guest has the UUID and another one has it as its name, which any
            user who may define guests can choose.
        """
        name = _as_utf8(name)
        action = f"looking for guest {name} at {self.uri}"
        by_name = self._found(action, self._raw.lookupByName, name)
        by_uuid = None
        if _UUID.fullmatch(name):
            by_uuid = self._found(action, self._raw.lookupByUUIDString, name)
        if by_name is not None and by_uuid is not None:
            with translated(action):
                other, uuid = str(by_uuid.name()), str(by_name.UUIDString())
            if other != name:
                raise RefusedError(
                    f"{action}: this is the UUID of guest {other} and the name of another guest, "
                    f"whose UUID is {uuid}; use the name of the first or the UUID of the second, "
                    "and rename the second"
                )
        guest = by_uuid if by_uuid is not None else by_name
        if guest is None:
            raise HypervisorError(f"{action}: no such guest; {self._valid_names(name)}")
        return guest

    @staticmethod
    def _found(action: str, lookup: Callable[[str], Any], name: str) -> Any:  # noqa: ANN401
        """Return the guest that a call of libvirt finds; None if it finds none."""
        try:
            return lookup(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise translate(action, error) from error

    def _valid_names(self, name: str) -> str:
        """Return the names of guests, and the nearest to ``name``, for a message."""
        names = self.names()
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        shown = ", ".join(names[:_NAMES]) or "none, no guest is defined"
        return f"{did_you_mean(name, names)}valid: {shown}{more}"

    # Running guests, by UUID: a guest may start or stop between two calls, which is not an error.

    def is_alive(self) -> bool:
        """Return whether the connection is open; libvirt notices a loss when a call fails."""
        try:
            return bool(self._raw.isAlive())
        except libvirt.libvirtError:
            return False

    def running(self) -> list[str]:
        """Return the UUIDs of the running guests."""
        with translated(f"listing the guests at {self.uri}"):
            active = self._raw.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            return [str(domain.UUIDString()) for domain in active]

    def live_text(self, uuid: str) -> str | None:
        """Return the XML of a guest's run, without secrets; None if the guest is off."""
        try:
            domain = self._raw.lookupByUUIDString(uuid)
            text = str(domain.XMLDesc(0))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise translate(f"reading the XML of guest {uuid} at {self.uri}", error) from error
        # For a guest that is off libvirt returns its definition, which has no id.
        return text if _RUNS.match(text) else None

    def memory(self, uuid: str, address: int, size: int) -> bytes:
        """Return bytes of a running guest's physical address space, its devices included.

        https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainMemoryPeek; the connection
        must be writable.
        """
        with translated(f"reading {size} bytes at {address:#x} of guest {uuid} at {self.uri}"):
            domain = self._raw.lookupByUUIDString(uuid)
            return bytes(domain.memoryPeek(address, size, libvirt.VIR_MEMORY_PHYSICAL))

    def set_live_metadata(self, uuid: str, namespace: str, prefix: str, xml: str | None) -> bool:
        """Set an element in the metadata of a guest's run, replacing the existing one.

        https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainSetMetadata

        :param prefix: the prefix that libvirt gives ``namespace``.
        :param xml: the element without a namespace; None removes the existing one.
        :return: whether the guest runs; when it stops, libvirt drops the element.
        """
        action = f"writing the live metadata of guest {uuid} at {self.uri}"
        kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
        try:
            domain = self._raw.lookupByUUIDString(uuid)
            domain.setMetadata(kind, xml, prefix, namespace, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            # OPERATION_INVALID: the guest is off (virDomainObjUpdateModificationImpact in libvirt).
            if error.get_error_code() in _NOT_RUNNING:
                return False
            raise translate(action, error) from error
        return True
