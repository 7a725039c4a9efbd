"""The bindings of guest MSIs that the host's kernel has: its file in debugfs, read and written.

The kernel's interface is described in ``docs/watch.md``; a kernel without it has no such
file. The file names devices by their PCI address and needs no descriptor of the VMM, so it works
for any VMM. It takes one command for each write and returns the errno of the operation. Only root
may open it.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from vmm_msi.errors import BackendError, InputError, UnreadableError
from vmm_msi.host.files.capture_paths import MSI_BINDINGS
from vmm_msi.types import Iova, Ipa, Pa, PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmm_msi.types import HostTopology

PATH = Path(MSI_BINDINGS)
#: The version of the file that this module reads and writes.
VERSION = 1

#: Limits of the file: a line has less than 128 characters, and a host less than 64 Ki functions.
MAX_BYTES = 8 << 20
_MAX_LINES = 1 << 16
_CHUNK = 1 << 18

BindingState = Literal["pending", "used", "unused"]

_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_HEX = re.compile(r"0x[0-9a-f]{1,16}")
_VERSION_LINE = re.compile(r"version (0|[1-9][0-9]{0,8})")


class BindingAllocator(StrEnum):
    """What a nest parent gives the MSIs of its devices: ``enum iommu_msi_binding``."""

    DIRECT = "direct"
    LIST = "list"
    DEVICE = "device"
    LIST_ONE_DOMAIN = "list-one-domain"
    LIST_ONE_GRANULE = "list-one-granule"


class GiovaSource(StrEnum):
    """Where the gIOVA of a binding is from."""

    #: The guest wrote it into an MSI of the device.
    GUEST = "guest"
    #: The guest wrote none yet, and the kernel has a binding of the device.
    KERNEL = "kernel"
    #: The guest wrote none yet: the first IOVA that Linux allocates.
    PREDICTED = "predicted"


@dataclass(frozen=True, slots=True)
class BoundFunction:
    """A PCI function that is bound to an iommufd.

    :param context: number of the iommufd file.
    :param nest_parent: id of the nest parent that it is attached below; None for none.
    :param vdevice: id of its vDEVICE; None before the guest's SMMU driver set it up.
    :param allocator: that of the nest parent.
    """

    context: int
    nest_parent: int | None = None
    vdevice: int | None = None
    allocator: str | None = None


@dataclass(frozen=True, slots=True)
class KernelBinding:
    """A binding of a guest's MSIs: stage 1 maps gIOVA to gDB, the kernel maps gDB to hDB.

    :param pending: the kernel applies it when the guest's SMMU driver sets the device up.
    :param hpa: page of the host's doorbell; None until gDB is mapped.
    :param used: the device is programmed with it.
    """

    device: PciAddress
    giova: Iova
    gdb: Ipa
    page_shift: int
    pending: bool = False
    hpa: Pa | None = None
    used: bool = False

    @property
    def state(self) -> BindingState:
        """Whether the device is programmed with it, or cannot be yet."""
        return "pending" if self.pending else "used" if self.used else "unused"

    def __str__(self) -> str:
        to = "" if self.hpa is None else f" -> hDB page {self.hpa}"
        return f"gIOVA {self.giova} -> gDB {self.gdb}{to}, {self.state}"


@dataclass(frozen=True)
class MsiBindings:
    """The content of the file.

    :param functions: the PCI functions that are bound to an iommufd.
    :param bindings: in the order of the file.
    """

    version: int = VERSION
    functions: Mapping[PciAddress, BoundFunction] = field(default_factory=dict)
    bindings: tuple[KernelBinding, ...] = ()

    def of(self, device: PciAddress) -> tuple[KernelBinding, ...]:
        """Return the bindings of a device, pending ones included."""
        return tuple(binding for binding in self.bindings if binding.device == device)


def takes_bindings(host: HostTopology) -> bool:
    """Return whether the host's kernel takes guest MSI bindings, in the known version."""
    return host.msi_bindings == VERSION


def read_version(text: str) -> int:
    """Return the version in the first line of the file.

    :raise ValueError: when it has another form.
    """
    match = _VERSION_LINE.fullmatch(text.partition("\n")[0])
    if match is None:
        raise ValueError("the first line is not 'version NUMBER'")
    return int(match[1])


def parse_bindings(text: str) -> MsiBindings:
    """Return the content of the file.

    Lines and words that a later kernel of the same version adds at their ends are skipped.

    :raise ValueError: when it has another form or version.
    """
    version = read_version(text)
    if version != VERSION:
        raise ValueError(f"version {version} is unknown; valid: {VERSION}")
    functions: dict[PciAddress, BoundFunction] = {}
    bindings: list[KernelBinding] = []
    for number, line in enumerate(_lines(text), 2):
        words = line.split(" ")
        try:
            match words:
                case ["device", address, *rest]:
                    functions[PciAddress.parse(address)] = _function(rest)
                case ["binding" | "pending", address, *rest]:
                    pending = words[0] == "pending"
                    bindings.append(_binding(PciAddress.parse(address), rest, pending=pending))
        except (ValueError, InputError, LookupError) as error:
            raise ValueError(f"line {number}: {line[:80]!r} has an unknown form") from error
    return MsiBindings(version, functions, tuple(bindings))


def _lines(text: str) -> Iterator[str]:
    lines = text.split("\n", _MAX_LINES)
    if len(lines) > _MAX_LINES:
        raise ValueError(f"more than {_MAX_LINES} lines")
    yield from lines[1:]


def _function(words: list[str]) -> BoundFunction:
    values = _values(words)
    allocator = values["allocator"]
    return BoundFunction(
        context=_decimal(values["context"]),
        nest_parent=None if values["hwpt"] == "-" else _decimal(values["hwpt"]),
        vdevice=None if values["vdevice"] == "-" else _decimal(values["vdevice"]),
        allocator=None if allocator == "-" else allocator,
    )


def _binding(device: PciAddress, words: list[str], *, pending: bool) -> KernelBinding:
    values = _values(words)
    hpa = "-" if pending else values["hpa"]
    return KernelBinding(
        device,
        Iova(_hexadecimal(values["iova"])),
        Ipa(_hexadecimal(values["gpa"])),
        _decimal(values["shift"]),
        pending=pending,
        hpa=None if hpa == "-" else Pa(_hexadecimal(hpa)),
        used=not pending and {"used": True, "unused": False}[words[8]],
    )


def _values(words: list[str]) -> dict[str, str]:
    """Return the values of ``name value name value …``; a last single word is left out."""
    return dict(zip(words[::2], words[1::2], strict=False))


def _decimal(word: str) -> int:
    if _NUMBER.fullmatch(word) is None:
        raise ValueError(word)
    return int(word)


def _hexadecimal(word: str) -> int:
    if _HEX.fullmatch(word) is None:
        raise ValueError(word)
    return int(word, 16)


@dataclass(frozen=True, slots=True)
class BindingCommand:
    """A command that the file takes.

    :param verb: ``allocator``, ``bind``, ``unbind`` or ``prepare``.
    """

    verb: str
    device: PciAddress
    values: tuple[str, ...] = ()

    @classmethod
    def allocator(cls, device: PciAddress, allocator: BindingAllocator) -> Self:
        """Return the command that sets the allocator of the device's nest parent."""
        return cls("allocator", device, (allocator.value,))

    @classmethod
    def bind(cls, binding: KernelBinding) -> Self:
        """Return the command that binds a device.

        Before its vDEVICE exists, the kernel keeps the binding for that time.
        """
        values = (str(binding.giova), str(binding.gdb), str(binding.page_shift))
        return cls("bind", binding.device, values)

    @classmethod
    def unbind(cls, device: PciAddress, giova: Iova) -> Self:
        """Return the command that withdraws a binding, also a pending one."""
        return cls("unbind", device, (str(giova),))

    @classmethod
    def prepare(cls, device: PciAddress) -> Self:
        """Return the command that writes the address of each MSI into the device again."""
        return cls("prepare", device)

    def __str__(self) -> str:
        return " ".join((self.verb, str(self.device), *self.values))


@dataclass(frozen=True)
class MsiBindingsFile:
    """The file of this machine's kernel.

    :param descriptor: the file, open for reading and writing, for a process that may not open it.
    """

    path: Path = PATH
    descriptor: int | None = None

    def read(self) -> MsiBindings:
        """Return its content.

        :raise UnreadableError: when it is missing, cannot be read, or has another form.
        """
        try:
            with self._opened(os.O_RDONLY) as fd:
                return parse_bindings(_content(fd))
        except OSError as failure:
            raise UnreadableError("this machine", str(self.path), _reason(failure)) from failure
        except ValueError as failure:
            raise UnreadableError("this machine", str(self.path), str(failure)) from failure

    def run(self, command: BindingCommand) -> None:
        """Write one command; the file takes one for each write.

        :raise BackendError: with the errno of the operation.
        """
        try:
            with self._opened(os.O_WRONLY) as fd:
                os.write(fd, f"{command}\n".encode("ascii"))
        except OSError as failure:
            raise BackendError(
                failure.errno or errno.EIO,
                f"writing {str(command)!r} to {self.path}: {_reason(failure)}",
            ) from failure

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        if self.descriptor is not None:
            yield self.descriptor
            return
        fd = os.open(self.path, flags | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def _content(fd: int) -> str:
    """Return the content of an open file, whatever its position."""
    data = b""
    while part := os.pread(fd, _CHUNK, len(data)):
        data += part
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
    return data.decode("ascii")


def _reason(failure: OSError) -> str:
    reason = failure.strerror or str(failure)
    match failure.errno:
        case errno.ENOENT:
            return f"{reason}: the kernel takes no guest MSI bindings, or debugfs is not mounted"
        case errno.EACCES | errno.EPERM:
            return f"{reason}; run as root"
    return reason
