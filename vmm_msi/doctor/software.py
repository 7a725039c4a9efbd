"""Releases of libvirt and QEMU: query them, and store them in a capture."""

from __future__ import annotations

import os
import re
import select
import subprocess
from typing import TYPE_CHECKING

import msgspec

from vmm_msi import ownership
from vmm_msi.doctor.case import Software
from vmm_msi.domxml.support import Version
from vmm_msi.errors import TopologyError

if TYPE_CHECKING:
    from vmm_msi.libvirt_driver import Connection

#: The program that runs Arm guests.
EMULATOR = "qemu-system-aarch64"
_TIMEOUT_S = 5
#: Bytes of its output to read; the release is in the first 30.
_MAX_OUTPUT = 200
_RELEASE = re.compile(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?")
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})")


class _Record(msgspec.Struct, frozen=True, omit_defaults=True):
    libvirt: str | None = None
    qemu: str | None = None
    driver: str | None = None
    source: str = msgspec.field(default="", name="said_by")


def query_libvirt(connection: Connection) -> Software:
    """Return the releases of libvirt and of the QEMU that it starts.

    Domain capabilities are not queried: libvirt refuses them on read-only connections
    (virConnectGetDomainCapabilities).

    :raise HypervisorError: if libvirt does not respond.
    """
    versions = connection.versions()
    return Software(
        versions.libvirt,
        versions.hypervisor,
        versions.driver,
        source=f"libvirt at {connection.uri}",
    )


def query_emulator() -> Software:
    """Return the release of the emulator on the path; empty if there is no emulator.

    An emulator that another user may change is not run.
    """
    program = ownership.find_program(EMULATOR)
    if program is None:
        return Software()
    match = _RELEASE.match(_version_output(program).decode("utf-8", "replace"))
    if match is None:
        return Software()
    version = Version(int(match[1]), int(match[2]), int(match[3] or 0))
    return Software(qemu=version, source=f"{program} --version")


def _version_output(program: str) -> bytes:
    """Return the start of ``--version``; empty if the program fails or prints nothing in time."""
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
            return os.read(process.stdout.fileno(), _MAX_OUTPUT)
        finally:
            process.kill()


def encode(software: Software) -> bytes:
    """Return releases as stored in a capture."""
    record = _Record(
        None if software.libvirt is None else str(software.libvirt),
        None if software.qemu is None else str(software.qemu),
        software.driver,
        software.source,
    )
    return msgspec.json.format(msgspec.json.encode(record)) + b"\n"


def decode(data: bytes, source: str) -> Software:
    """Return the releases stored in a capture.

    :param source: the capture and its file, for messages.
    :raise TopologyError: if the data is malformed.
    """
    try:
        record = msgspec.json.decode(data, type=_Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as failure:
        raise TopologyError(f"{source}: {failure}") from failure
    return Software(
        _version(record.libvirt, source),
        _version(record.qemu, source),
        record.driver,
        source=record.source,
    )


def _version(text: str | None, source: str) -> Version | None:
    if text is None:
        return None
    match = _VERSION.fullmatch(text)
    if match is None:
        raise TopologyError(f"{source}: {text[:40]!r} is not a release; use one such as 12.8.0")
    return Version(*map(int, match.groups()))
