"""The errors that this package raises on purpose, in one tree.

::

    VmmMsiError
    ├── UsageError              the command line names something that does not exist
    │   └── CommandLineError    the command line cannot be parsed
    ├── InputError              a file or a document is invalid
    │   ├── ConfigError         vmm-msi.toml
    │   ├── ScenarioError       a scenario TOML
    │   ├── CallSequenceError   a call sequence of ``vmm-msi lab conform``
    │   ├── TopologyError       ACPI tables, a device tree, a device that they do not list
    │   ├── UnreadableError     an unreadable file of a host (``vmm_msi.host.files``)
    │   └── DomainXmlError      libvirt domain XML
    ├── PluginError             a plugin does not load, has a taken name or breaks the contract
    ├── RefusedError            a strategy, a policy or a capability refuses; nothing was changed
    │   ├── BackendError        the kernel (real or simulated) refuses, with an errno
    │   ├── FindingsError       the doctor reports errors, with the ids of its findings
    │   └── VetoError           an observer vetoes
    ├── HypervisorError         libvirt refuses
    │   ├── NoHostDeviceError   libvirt has no such device of the host
    │   └── UndoError           a change failed, and part of it could not be undone
    ├── LabError                the emulated host or its root cannot be built or run
    └── OutputError             a result cannot be written to its destination

Messages read ``doing what to which object: what is wrong; what to use instead``. The CLI catches
:class:`VmmMsiError` only, prints that one line and exits with :attr:`VmmMsiError.exit_code`.
Programs tell kinds of errors apart by the class or by :attr:`VmmMsiError.code`.
"""

from __future__ import annotations

import errno as _errno
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

# Names in the kernel's headers where Python prefers the synonym.
_KERNEL_NAMES = {_errno.EOPNOTSUPP: "EOPNOTSUPP", _errno.EAGAIN: "EAGAIN"}


def errno_name(number: int) -> str:
    """Return the name of an error number in the kernel's headers, such as ``EINVAL``."""
    return _KERNEL_NAMES.get(number) or _errno.errorcode.get(number, f"errno {number}")


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Return ``did you mean X? `` for the word of ``valid`` nearest to ``word``.

    :return: empty when no word is near; it goes before the list of the valid ones.
    """
    from difflib import get_close_matches

    # The comparison takes time in the square of the length; no valid word is longer.
    near = get_close_matches(word.lower()[:64], list(valid), 1, 0.7)
    return f"did you mean {near[0]}? " if near else ""


class VmmMsiError(Exception):
    """Root of the tree; only its subclasses are raised."""

    #: Identifier of this kind of error in JSON and for programs; a released one never changes.
    code = "error"
    #: Exit code of the command line for this kind of error (docs/cli.md).
    exit_code = 1


class UsageError(VmmMsiError):
    """The command line names something that does not exist, or requires a missing extra."""

    code = "usage"
    exit_code = 2


class CommandLineError(UsageError):
    """The command line cannot be parsed."""

    code = "command-line"


class InputError(VmmMsiError):
    """An input file or document is invalid."""

    code = "input"
    exit_code = 3


class ConfigError(InputError):
    """``vmm-msi.toml`` is invalid."""

    code = "config"


class ScenarioError(InputError):
    """A scenario file is invalid.

    :param errors: all that is wrong with it, each a line.
    """

    code = "scenario"

    def __init__(self, *errors: str) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


class CallSequenceError(InputError):
    """A call sequence cannot be run."""

    code = "call-sequence"


class TopologyError(InputError):
    """A host description is malformed or lacks a required fact."""

    code = "topology"


class UnreadableError(InputError):
    """A file of a host exists and cannot be read.

    :param path: the path on the host.
    :param reason: the kernel's error, now or when the capture was made.
    """

    code = "unreadable"

    def __init__(self, source: str, path: str, reason: str) -> None:
        super().__init__(f"reading {path} of {source}: {reason}")
        self.path = path
        self.reason = reason


class DomainXmlError(InputError):
    """A libvirt domain XML document is invalid or cannot be edited."""

    code = "domain-xml"


class PluginError(VmmMsiError):
    """A plugin does not load, clashes with another one or breaks the contract."""

    code = "plugin"
    exit_code = 4


class RefusedError(VmmMsiError):
    """A strategy, a policy or a missing capability refuses; nothing was changed."""

    code = "refused"
    exit_code = 5


class Rule(NamedTuple):
    """A rule of the kernel, the hardware or vmm-msi that decides what becomes of a call or an MSI.

    :param text: the rule, as a sentence without a full stop.
    :param source: where it is written: a function and its file, or a place in a specification.
    """

    text: str
    source: str

    def __str__(self) -> str:
        return f"{self.text} ({self.source})"

    def refusal(self, errno: int, reason: str, *, inside: int | None = None) -> BackendError:
        """Return the error of an operation that breaks the rule; see :class:`BackendError`."""
        return BackendError(errno, reason, inside=inside, decided_by=self)


class BackendError(RefusedError):
    """The kernel, real or simulated, refuses an operation.

    :param errno: the positive error number that the caller of the ioctl sees for the same cause.
    :param reason: what is wrong, in a sentence without the errno.
    :param inside: the error number of the function in the kernel that refused, where a function
        on the way to the caller replaced it; only a simulator knows it.
    :param decided_by: the rule that was broken; only a simulator knows it.
    """

    code = "backend-refused"

    def __init__(
        self,
        errno: int,
        reason: str,
        *,
        inside: int | None = None,
        decided_by: Rule | None = None,
    ) -> None:
        self.errno = errno
        self.decided_by = decided_by
        self.reason = reason
        self.inside = None if inside == errno else inside
        within = "" if self.inside is None else f" ({errno_name(self.inside)} in the kernel)"
        super().__init__(f"{errno_name(errno)}{within}: {reason}")

    def seen_as(self, errno: int, reason: str | None = None) -> BackendError:
        """Return the error as a function sees it that replaces the error number.

        :param reason: in the place of the error's own.
        """
        inside = self.errno if self.inside is None else self.inside
        reason = self.reason if reason is None else reason
        return BackendError(errno, reason, inside=inside, decided_by=self.decided_by)


class FindingsError(RefusedError):
    """The doctor reports errors for the host, the guest or a device.

    :param findings: ids of the findings, each once.
    """

    code = "findings"

    def __init__(self, message: str, findings: tuple[str, ...]) -> None:
        super().__init__(message)
        self.findings = findings


class VetoError(RefusedError):
    """An observer vetoes an action."""

    code = "veto"


class HypervisorError(VmmMsiError):
    """libvirt refuses an operation or cannot be reached."""

    code = "libvirt"
    exit_code = 6


class NoHostDeviceError(HypervisorError):
    """libvirt has no such device of the host, or lists no devices."""

    code = "no-host-device"


class UndoError(HypervisorError):
    """A change failed, and the part that the message names is or may be still in place."""

    code = "undo-failed"


class LabError(VmmMsiError):
    """The lab cannot be built, started or reached."""

    code = "lab"
    exit_code = 7


class OutputError(VmmMsiError):
    """A result cannot be written to its destination."""

    code = "output"
    exit_code = 1
