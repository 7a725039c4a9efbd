"""Arguments of the library: text as on the command line, or values of the package.

Each function returns its argument's value, or raises :class:`UsageError` or :class:`InputError` for
one of another form or type.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vmm_msi.config import Choice
from vmm_msi.errors import InputError, UsageError, did_you_mean
from vmm_msi.types import Granule, PciAddress

if TYPE_CHECKING:
    from enum import StrEnum

    from vmm_msi.domxml.support import Version

    #: A device, or its PCI address as text such as ``0000:01:00.0``.
    Device = PciAddress | str
    #: One device or several.
    Devices = Device | Iterable[Device]

_RELEASE = re.compile(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?", re.ASCII)

_Member = TypeVar("_Member", bound="StrEnum")


def text_value(what: str, value: object) -> str:
    """Return a text that libvirt can be asked about.

    :param what: what the text is, for the message.
    """
    if not isinstance(value, str):
        raise UsageError(f"{what} {value!r}: not a text; use a str")
    if "\0" in value:
        raise UsageError(f"{what} {value!r}: has a NUL character, which no name has; remove it")
    return value


def is_other_machine(uri: str) -> bool:
    """Return whether a libvirt URI is one of another machine: it names a server."""
    return "://" in uri and not uri.split("://", 1)[1].startswith("/")


def fdgroup_name(value: object) -> str:
    """Return the name of a group of file descriptors, which XML can hold."""
    name = text_value("file descriptor group", value)
    if not name.isprintable():
        raise UsageError(
            f"file descriptor group {name!r}: has characters that cannot be printed; use any other "
            "text"
        )
    return name


def whole_number(what: str, value: object) -> int:
    """Return an integer; its range is checked where it is used.

    :param what: what the number is, for the message.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise UsageError(f"{what} {value!r}: not a whole number; use an int")


def seconds(what: str, value: object) -> float:
    """Return a time in seconds; its range is checked where it is used.

    :param what: what the time is for, for the message.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise UsageError(f"{what} {value!r}: not a number of seconds; use an int or a float")


def switch(what: str, value: object) -> bool:
    """Return a truth value.

    :param what: what it switches, for the message.
    """
    if isinstance(value, bool):
        return value
    raise UsageError(f"{what} {value!r}: valid: True, False")


def member(kind: type[_Member], what: str, value: object) -> _Member:
    """Return the member of an enumeration.

    :param what: what the member is, for the message.
    """
    if isinstance(value, str):
        for valid in kind:
            if valid == value:
                return valid
    shown = did_you_mean(value, list(kind)) if isinstance(value, str) else ""
    raise UsageError(f"{what} {value!r}: unknown; {shown}valid: {', '.join(kind)}")


def device_addresses(value: object) -> tuple[PciAddress, ...]:
    """Return the addresses of one device or of several.

    :raise InputError: for a text that is not a PCI address.
    """
    if isinstance(value, PciAddress | str):
        return (_address(value),)
    if isinstance(value, Iterable):
        return tuple(map(_address, value))
    raise UsageError(f"devices {value!r}: not PCI addresses; use a tuple of them")


def _address(value: object) -> PciAddress:
    if isinstance(value, PciAddress):
        return value
    if isinstance(value, str):
        return PciAddress.parse(value)
    raise UsageError(f"device {value!r}: not a PCI address; use a text such as 0000:01:00.0")


def strategy_choice(value: object) -> Choice:
    """Return a strategy with its options, of a text ``NAME[:key=value,…]``."""
    if isinstance(value, Choice):
        return value
    if isinstance(value, str):
        return Choice.parse(value)
    raise UsageError(f"strategy {value!r}: not of the form NAME[:key=value,…]; use a text")


def vsmmu_properties(value: object) -> dict[str, str]:
    """Return the properties of new vSMMUs, of a mapping or a text ``KEY=VALUE[,…]``."""
    if isinstance(value, Mapping):
        for part in (*value.keys(), *value.values()):
            if not isinstance(part, str):
                raise UsageError(f"vSMMU property {part!r}: not a text; use a str")
        return dict(value)
    if not isinstance(value, str):
        raise UsageError(f"vSMMU properties {value!r}: use a text KEY=VALUE[,…] or a mapping")
    pairs = [pair.partition("=") for pair in value.split(",")] if value else []
    properties = {key: text for key, equals, text in pairs if key and equals}
    if len(properties) != len(pairs):
        raise UsageError(
            f"vSMMU properties {value!r}: not of the form KEY=VALUE[,…] with each key once"
        )
    return properties


def file_path(what: str, value: object) -> Path:
    """Return the path of a file.

    :param what: what the file is, for the message.
    :raise UsageError: for a value that is not a path.
    """
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if isinstance(path, str) and "\0" not in path:
            return Path(path)
    raise UsageError(f"{what} {value!r}: not a path; use a str or a pathlib.Path")


def page_size(value: object) -> Granule | None:
    """Return the page size of a host's kernel; None for the one that its sources report.

    :raise InputError: for another value than a granule, in bytes or as text such as ``64K``.
    """
    if value is None or isinstance(value, Granule):
        return value
    if isinstance(value, str):
        return Granule.parse(value)
    for granule in Granule:
        if granule == value:
            return granule
    raise InputError(f"granule {value!r}: not one of 4K, 16K, 64K")


def release(what: str, value: object) -> Version | None:
    """Return the release of a program; None for the one that the sources report.

    :param what: the program, for the message.
    :raise UsageError: for a value that is not a release.
    """
    from vmm_msi.domxml.support import Version

    if value is None or isinstance(value, Version):
        return value
    match = _RELEASE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise UsageError(f"{what} {value!r}: not a release; valid are, for instance, 12.8, 11.0.1")
    return Version(*(int(part or 0) for part in match.groups()))
