"""Read the manifest of a capture."""

from __future__ import annotations

import msgspec

from vmm_msi.errors import TopologyError
from vmm_msi.host.files.paths import MAX_PARTS, MAX_PATH

#: Version of the format; it increases when something changes its meaning or is removed.
SCHEMA = 1


class Manifest(msgspec.Struct, frozen=True):
    """The manifest of a capture.

    :param schema: :data:`SCHEMA` of the program that wrote it.
    :param tool: that program, with its version.
    :param unreadable: by path, why the file could not be read.
    :param partial: by path, why the capture has only a part of the file.
    """

    schema: int
    tool: str = ""
    unreadable: dict[str, str] = {}
    partial: dict[str, str] = {}


def read_manifest(data: bytes, source: str) -> Manifest:
    """Read the manifest of a capture.

    :param source: its file, for messages.
    :raise TopologyError: when it is malformed or of another schema.
    """
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as failure:
        raise TopologyError(f"{source}: {failure}") from failure
    if manifest.schema != SCHEMA:
        raise TopologyError(
            f"{source}: the capture is of schema {manifest.schema}, this vmm-msi reads {SCHEMA}; "
            "read it with the vmm-msi that wrote it"
        )
    for path in manifest.unreadable:
        parts = path.split("/")
        if parts[0] or any(part in {"", ".", ".."} for part in parts[1:]) or len(parts) == 1:
            raise TopologyError(
                f"{source}: {path[:40]!r} is not an absolute path without //, . and .."
            )
        if len(parts) > MAX_PARTS:
            raise TopologyError(f"{source}: a path of {len(parts)} names; the limit is {MAX_PARTS}")
        if len(path) > MAX_PATH:
            raise TopologyError(
                f"{source}: a path of {len(path)} characters; the limit is {MAX_PATH}"
            )
    return manifest
