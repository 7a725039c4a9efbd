"""Asking a host which libvirt and QEMU it has, and keeping the answer in a capture."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
from typing import TYPE_CHECKING

import msgspec

from vmm_msi.doctor.case import Software
from vmm_msi.domxml.support import Version
from vmm_msi.errors import TopologyError

if TYPE_CHECKING:
    from vmm_msi.libvirt_driver import Connection

#: The program that runs Arm guests.
EMULATOR = "qemu-system-aarch64"
_TIMEOUT_S = 5
#: Bytes of its answer that are read; the release is in the first 30.
_ANSWER = 200
_RELEASE = re.compile(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?")
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})")


class _Told(msgspec.Struct, frozen=True, omit_defaults=True):
    libvirt: str | None = None
    qemu: str | None = None
    driver: str | None = None
    said_by: str = ""


def ask_libvirt(connection: Connection) -> Software:
    """Ask libvirt for its release and that of the QEMU it starts.

    :raise HypervisorError: when it does not answer.
    """
    versions = connection.versions()
    return Software(
        versions.libvirt,
        versions.hypervisor,
        versions.driver,
        source=f"libvirt at {connection.uri}",
    )


def ask_emulator() -> Software:
    """Ask the emulator on the path for its release; nothing is known where there is none."""
    program = shutil.which(EMULATOR)
    if program is None:
        return Software()
    match = _RELEASE.match(_first_words(program).decode("utf-8", "replace"))
    if match is None:
        return Software()
    version = Version(int(match[1]), int(match[2]), int(match[3] or 0))
    return Software(qemu=version, source=f"{program} --version")


def _first_words(program: str) -> bytes:
    """Return what a program says first; nothing when it cannot be run or says nothing in time."""
    try:
        process = subprocess.Popen(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return b""
    with process:
        try:
            if process.stdout is None or not select.select([process.stdout], [], [], _TIMEOUT_S)[0]:
                return b""
            return os.read(process.stdout.fileno(), _ANSWER)
        finally:
            process.kill()


def encode(software: Software) -> bytes:
    """Return what a capture keeps."""
    told = _Told(
        None if software.libvirt is None else str(software.libvirt),
        None if software.qemu is None else str(software.qemu),
        software.driver,
        software.source,
    )
    return msgspec.json.format(msgspec.json.encode(told)) + b"\n"


def decode(data: bytes, source: str) -> Software:
    """Read what a capture keeps.

    :param source: where it is from, for messages.
    :raise TopologyError: when it is malformed.
    """
    try:
        told = msgspec.json.decode(data, type=_Told)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as failure:
        raise TopologyError(f"{source}: {failure}") from failure
    return Software(
        _version(told.libvirt, source),
        _version(told.qemu, source),
        told.driver,
        source=told.said_by,
    )


def _version(text: str | None, source: str) -> Version | None:
    if text is None:
        return None
    match = _VERSION.fullmatch(text)
    if match is None:
        raise TopologyError(f"{source}: {text[:40]!r} is no release; valid is one such as 12.8.0")
    return Version(*map(int, match.groups()))
