"""Recordings as JSON: reading what anybody may have sent, and writing it.

Addresses, StreamIDs and DeviceIDs are hex strings; the rest is as the classes have it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from vmm_msi.errors import InputError
from vmm_msi.recording import SCHEMA, Recording

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence
    from pathlib import Path

#: Bytes that a recording may have.
MAX_BYTES = 4 << 20
#: Devices, slots, ITSes and the like that one may have of each.
MAX_ITEMS = 4096
_MAX_ADDRESS = 1 << 64
_HEX = re.compile(r"0x[0-9a-f]{1,16}")
_SHOWN = 200
_MAX_VECTOR = 2047


def encode(recording: Recording) -> bytes:
    """Return the file's content."""
    document = {"schema": SCHEMA, **msgspec.to_builtins(recording, enc_hook=_plain)}
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def read(path: Path) -> Recording:
    """Read a recording.

    :raise InputError: when it cannot be read; see :func:`decode`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as failure:
        raise InputError(
            f"reading recording {path}: {failure.strerror}; valid is a file that vmm-msi record "
            "wrote"
        ) from failure
    return decode(data, str(path))


def decode(data: bytes, source: str) -> Recording:
    """Read the content of a file.

    :param source: its name, for messages.
    :raise InputError: when it is no recording, has more than :data:`MAX_BYTES`, is of another
        schema, or has keys or references that mean nothing.
    """
    try:
        return _decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as failure:
        raise InputError(f"reading recording {source}: {str(failure)[:_SHOWN]}") from failure


def _decode(data: bytes) -> Recording:
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes; valid is up to that")
    document = msgspec.json.decode(data)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object; valid is what vmm-msi record wrote")  # noqa: TRY004
    schema = document.pop("schema", None)
    if schema != SCHEMA or isinstance(schema, bool):
        raise ValueError(f"schema is {schema!r}; this vmm-msi reads {SCHEMA}")
    recording = msgspec.convert(document, Recording, dec_hook=_typed)
    for path in _unknown(document, msgspec.to_builtins(recording, enc_hook=_plain), ""):
        raise ValueError(f"{path[1:]}: there is no such key; valid is what vmm-msi record writes")
    for problem in _problems(recording):
        raise ValueError(problem)
    return recording


def _plain(value: object) -> str:
    if isinstance(value, int):
        return hex(value)
    raise NotImplementedError(f"{type(value)} has no JSON form")


def _typed(kind: type[Any], value: object) -> object:
    """Make an address or an id, which are subclasses of int."""
    if issubclass(kind, int) and isinstance(value, str) and _HEX.fullmatch(value):
        return kind(int(value, 16))
    raise ValueError(f'expected {kind.__name__}, a hex string like "0x8000040"')


def _unknown(given: object, kept: object, path: str) -> Iterator[str]:
    """Yield the places of keys that were not taken."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key in kept:
                yield from _unknown(value, kept[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(given, list) and isinstance(kept, list | tuple):
        for number, (one, other) in enumerate(zip(given, kept, strict=False)):
            yield from _unknown(one, other, f"{path}[{number}]")


def _problems(recording: Recording) -> Iterator[str]:
    """Yield what keeps a recording from being brought up on the model."""
    host, guest = recording.host, recording.guest
    seen = [device.address for device in recording.devices]
    listed: dict[str, Sequence[Hashable]] = {
        "devices": seen,
        "slots": [slot.page for slot in recording.slots],
        "host.devices": [device.address for device in host.devices],
        "host.smmus": [smmu.id for smmu in host.smmus],
        "host.itses": [its.id for its in host.itses],
        "host.itses by base": [its.doorbell for its in host.itses],
        "guest.devices": [device.host for device in guest.devices],
        "guest.vits": [vits.id for vits in guest.vits],
        "guest.stage1": [stage1.id for stage1 in guest.stage1],
    }
    if not seen:
        yield "devices: there are none; valid is at least one"
    for name, items in listed.items():
        if len(items) > MAX_ITEMS:
            yield f"{name}: there are {len(items)}; valid is up to {MAX_ITEMS}"
        if len(set(items)) != len(items):
            yield f"{name}: one is there twice; valid is each once"
    for name in ("host.devices", "guest.devices"):
        if set(listed[name]) != set(seen):
            yield f"{name}: they are not those of devices; valid are the same addresses"
    for device in recording.devices:
        for vector in device.vectors:
            if not 0 <= vector.number <= _MAX_VECTOR or vector.interrupts < 0:
                yield (
                    f"devices: {device.address}: vector {vector.number} with {vector.interrupts} "
                    f"interrupts; valid are numbers from 0 to {_MAX_VECTOR} and counts from 0"
                )
    yield from _host_problems(recording)
    for assigned in guest.devices:
        if assigned.vits not in guest.vits_by_id:
            yield f"guest: {assigned.host} uses vITS {assigned.vits}, which is not there"
        if assigned.stage1 not in guest.stage1_by_id:
            yield f"guest: {assigned.host} uses stage 1 {assigned.stage1!r:.40}, which is not there"
    if not guest.memory:
        yield "guest.memory: there is none; valid is at least one range"
    yield from _sizes("guest.memory", ((each.base, each.size) for each in guest.memory))
    for event in recording.events:
        if event.device not in seen:
            yield f"events: {event.device} is not among devices"
    for slot in recording.slots:
        if slot.its not in host.its_by_id:
            yield f"slots: ITS {slot.its} is not among host.itses"


def _host_problems(recording: Recording) -> Iterator[str]:
    host = recording.host
    for device in host.devices:
        if device.smmu not in host.smmu_by_id:
            yield f"host: {device.address} is behind SMMU {device.smmu}, which is not there"
        if not device.its_group or not set(device.its_group) <= set(host.its_by_id):
            yield f"host: {device.address} uses ITSes {device.its_group}; valid are some of host"
        if not 1 <= device.vectors <= MAX_ITEMS or not 1 <= device.streams <= MAX_ITEMS:
            yield f"host: {device.address}: vectors and streams are 1 to {MAX_ITEMS}"
        yield from _sizes(
            f"host: {device.address}: reserved",
            ((each.base, each.size) for each in device.reserved),
        )


def _sizes(name: str, ranges: Iterable[tuple[int, int]]) -> Iterator[str]:
    for base, size in ranges:
        if not (0 <= base < _MAX_ADDRESS and 0 < size <= _MAX_ADDRESS - base):
            yield f"{name}: {size} bytes from {base:#x}; valid is a range within 64 bits"
