"""Every error this package raises on purpose, in one tree.

::

    VmmMsiError
    ├── UsageError              the command line asks for something that does not exist
    ├── InputError              a file or document cannot be used as it is
    │   ├── ConfigError         vmm-msi.toml
    │   ├── ScenarioError       a scenario TOML
    │   ├── TopologyError       ACPI tables, a device tree, a device that is not in them
    │   ├── UnreadableError     a file of a host that is there (``vmm_msi.host.files``)
    │   └── DomainXmlError      libvirt domain XML
    ├── PluginError             a plugin cannot be loaded, has a taken name or breaks the contract
    ├── RefusedError            a strategy, a policy or a capability says no; nothing was changed
    │   └── BackendError        the kernel (real or modelled) says no, with an errno
    ├── HypervisorError         libvirt says no
    │   ├── NoHostDeviceError   libvirt knows no such device of the host
    │   └── UndoError           a change failed, and not all of it could be undone
    ├── LabError                the emulated host or its root cannot be built or run
    └── OutputError             a result cannot be written where it was asked to go

Messages read ``doing what to which: what is wrong; what would be valid``. The CLI catches
:class:`VmmMsiError` only, prints that one line and exits with :attr:`VmmMsiError.exit_code`.
"""

from __future__ import annotations

import errno as _errno

# Names of the kernel's own headers where Python prefers the synonym.
_KERNEL_NAMES = {_errno.EOPNOTSUPP: "EOPNOTSUPP", _errno.EAGAIN: "EAGAIN"}


def errno_name(number: int) -> str:
    """Return the kernel's name of an error number, such as ``EINVAL``."""
    return _KERNEL_NAMES.get(number) or _errno.errorcode.get(number, f"errno {number}")


class VmmMsiError(Exception):
    """Root of the tree; never raised itself."""

    #: Exit status of the command line for this kind of error (docs/cli.md).
    exit_code = 1


class UsageError(VmmMsiError):
    """The command line is well formed but names something that does not exist."""

    exit_code = 2


class InputError(VmmMsiError):
    """A file or a document that was given cannot be used."""

    exit_code = 3


class ConfigError(InputError):
    """``vmm-msi.toml`` cannot be used."""


class ScenarioError(InputError):
    """A scenario file cannot be used."""


class TopologyError(InputError):
    """A host description is malformed or lacks what is asked of it."""


class UnreadableError(InputError):
    """A file of a host is there and cannot be read.

    :param path: as on the host.
    :param reason: what the kernel says, or said when the capture was made.
    """

    def __init__(self, source: str, path: str, reason: str) -> None:
        super().__init__(f"reading {path} of {source}: {reason}")
        self.path = path
        self.reason = reason


class DomainXmlError(InputError):
    """A libvirt domain XML document cannot be used or edited."""


class PluginError(VmmMsiError):
    """A plugin cannot be loaded, clashes with another one or breaks the contract."""

    exit_code = 4


class RefusedError(VmmMsiError):
    """A strategy, a policy or a missing capability says no, before anything is changed."""

    exit_code = 5


class BackendError(RefusedError):
    """The kernel, real or modelled, refuses an operation.

    :param errno: the positive error number Linux returns for the same cause.
    :param reason: what was wrong, in a sentence without the errno.
    """

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(f"{errno_name(errno)}: {reason}")
        self.errno = errno
        self.reason = reason


class HypervisorError(VmmMsiError):
    """libvirt refuses an operation or cannot be reached."""

    exit_code = 6


class NoHostDeviceError(HypervisorError):
    """libvirt knows no such device of the host, or knows of no devices at all."""


class UndoError(HypervisorError):
    """A change failed and what was done of it is there still, or may be; the message says what."""


class LabError(VmmMsiError):
    """The lab cannot be built, started or reached."""

    exit_code = 7


class OutputError(VmmMsiError):
    """A result cannot be written where it was asked to go."""

    exit_code = 1
