"""Read and write recordings as JSON; the reader does not trust the file.

Addresses, StreamIDs and DeviceIDs are hex strings; all other values are as in the classes.
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

    from vmm_msi.recording import RecordedDevice

#: Maximum size of a recording, in bytes.
MAX_BYTES = 4 << 20
#: Maximum number of devices, of slots, of ITSes and so on in a recording.
MAX_ITEMS = 4096
_MAX_ADDRESS = 1 << 64
_HEX = re.compile(r"0x[0-9a-f]{1,16}")
_SHOWN = 200
_MAX_VECTOR = 2047
#: Lowest and highest page shift that the kernel binds.
_SHIFTS = (12, 30)


def encode(recording: Recording) -> bytes:
    """Return the content of the file."""
    document = {"schema": SCHEMA, **msgspec.to_builtins(recording, enc_hook=_plain)}
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def read(path: Path) -> Recording:
    """Read a recording.

    :raise InputError: when the file cannot be read; see :func:`decode`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as failure:
        raise InputError(
            f"reading recording {path}: {failure.strerror}; valid is a file from vmm-msi record"
        ) from failure
    return decode(data, str(path))


def decode(data: bytes, source: str) -> Recording:
    """Decode and check the content of a file.

    :param source: name of the file, for messages.
    :raise InputError: when the content is not a recording, is larger than :data:`MAX_BYTES`, has
        another schema, or has unknown keys or dangling references.
    """
    try:
        return _decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as failure:
        raise InputError(f"reading recording {source}: {str(failure)[:_SHOWN]}") from failure


def _decode(data: bytes) -> Recording:
    if len(data) > MAX_BYTES:
        raise ValueError(f"the file is larger than {MAX_BYTES} bytes, which is the maximum")
    document = msgspec.json.decode(data)
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object; valid is a file from vmm-msi record")  # noqa: TRY004
    schema = document.pop("schema", None)
    if schema != SCHEMA or isinstance(schema, bool):
        raise ValueError(f"schema is {schema!r}; this vmm-msi reads {SCHEMA}")
    recording = msgspec.convert(document, Recording, dec_hook=_typed)
    for path in _unknown(document, msgspec.to_builtins(recording, enc_hook=_plain), ""):
        raise ValueError(f"{path[1:]}: unknown key; valid are the keys that vmm-msi record writes")
    for problem in _problems(recording):
        raise ValueError(problem)
    return recording


def _plain(value: object) -> str:
    if isinstance(value, int):
        return hex(value)
    raise NotImplementedError(f"{type(value)} has no JSON form")


def _typed(kind: type[Any], value: object) -> object:
    """Convert to an address or an id, which are subclasses of int."""
    if issubclass(kind, int) and isinstance(value, str) and _HEX.fullmatch(value):
        return kind(int(value, 16))
    raise ValueError(f'expected {kind.__name__}, a hex string like "0x8000040"')


def _unknown(document: object, decoded: object, path: str) -> Iterator[str]:
    """Yield the paths of the keys that were not decoded."""
    if isinstance(document, dict) and isinstance(decoded, dict):
        for key, value in document.items():
            if key in decoded:
                yield from _unknown(value, decoded[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(document, list) and isinstance(decoded, list | tuple):
        for number, (one, other) in enumerate(zip(document, decoded, strict=False)):
            yield from _unknown(one, other, f"{path}[{number}]")


def _problems(recording: Recording) -> Iterator[str]:
    """Yield the errors that would keep the simulator from replaying a recording."""
    host, guest = recording.host, recording.guest
    addresses = [device.address for device in recording.devices]
    listed: dict[str, Sequence[Hashable]] = {
        "devices": addresses,
        "slots": [slot.page for slot in recording.slots],
        "host.devices": [device.address for device in host.devices],
        "host.smmus": [smmu.id for smmu in host.smmus],
        "host.itses": [its.id for its in host.itses],
        "host.itses by base": [its.doorbell for its in host.itses],
        "guest.devices": [device.host for device in guest.devices],
        "guest.vits": [vits.id for vits in guest.vits],
        "guest.stage1": [stage1.id for stage1 in guest.stage1],
    }
    if not addresses:
        yield "devices: the list is empty; valid is at least one device"
    for name, items in listed.items():
        if len(items) > MAX_ITEMS:
            yield f"{name}: {len(items)} items; valid are up to {MAX_ITEMS}"
        if len(set(items)) != len(items):
            yield f"{name}: duplicate items; valid are unique ones"
    for name in ("host.devices", "guest.devices"):
        if set(listed[name]) != set(addresses):
            yield f"{name}: the addresses differ from those in devices; valid are the same ones"
    for device in recording.devices:
        for vector in device.vectors:
            if not 0 <= vector.number <= _MAX_VECTOR or vector.interrupts < 0:
                yield (
                    f"devices: {device.address}: vector {vector.number} with {vector.interrupts} "
                    f"interrupts; valid are numbers from 0 to {_MAX_VECTOR} and counts from 0"
                )
        yield from _binding_problems(device)
    yield from _host_problems(recording)
    for assigned in guest.devices:
        if assigned.vits not in guest.vits_by_id:
            yield f"guest: {assigned.host} uses vITS {assigned.vits}, which is missing"
        if assigned.stage1 not in guest.stage1_by_id:
            yield f"guest: {assigned.host} uses stage 1 {assigned.stage1!r:.40}, which is missing"
    if not guest.memory:
        yield "guest.memory: the list is empty; valid is at least one range"
    yield from _range_problems("guest.memory", ((part.base, part.size) for part in guest.memory))
    for event in recording.events:
        if event.device not in addresses:
            yield f"events: {event.device} is not in devices"
    for slot in recording.slots:
        if slot.its not in host.its_by_id:
            yield f"slots: ITS {slot.its} is not in host.itses"


def _binding_problems(device: RecordedDevice) -> Iterator[str]:
    if len(device.bindings) > MAX_ITEMS:
        yield (
            f"devices: {device.address}: {len(device.bindings)} bindings; valid are up to "
            f"{MAX_ITEMS}"
        )
    for binding in device.bindings:
        if not _SHIFTS[0] <= binding.page_shift <= _SHIFTS[1]:
            yield (
                f"devices: {device.address}: page shift {binding.page_shift}; valid is "
                f"{_SHIFTS[0]} to {_SHIFTS[1]}"
            )


def _host_problems(recording: Recording) -> Iterator[str]:
    host = recording.host
    for device in host.devices:
        if device.smmu not in host.smmu_by_id:
            yield f"host: {device.address} is behind SMMU {device.smmu}, which is missing"
        if not device.its_group or not set(device.its_group) <= set(host.its_by_id):
            yield (
                f"host: {device.address} uses ITSes {device.its_group}; valid are those in "
                "host.itses"
            )
        if not 1 <= device.vectors <= MAX_ITEMS or not 1 <= device.streams <= MAX_ITEMS:
            yield f"host: {device.address}: vectors and streams are 1 to {MAX_ITEMS}"
        yield from _range_problems(
            f"host: {device.address}: reserved",
            ((region.base, region.size) for region in device.reserved),
        )


def _range_problems(name: str, ranges: Iterable[tuple[int, int]]) -> Iterator[str]:
    for base, size in ranges:
        if not (0 <= base < _MAX_ADDRESS and 0 < size <= _MAX_ADDRESS - base):
            yield f"{name}: {size} bytes from {base:#x}; valid is a range within 64 bits"
