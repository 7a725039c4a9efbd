"""What a capture says of itself."""

from __future__ import annotations

import msgspec

from vmm_msi.errors import TopologyError
from vmm_msi.host.files.paths import MAX_PATH

#: Version of the form of a capture; it goes up when something changes its meaning or goes away.
SCHEMA = 1


class Manifest(msgspec.Struct, frozen=True):
    """What a capture says of itself.

    :param schema: :data:`SCHEMA` of whoever wrote it.
    :param tool: what wrote it, with its version.
    :param unreadable: why a file could not be read, for those that could not.
    :param partial: why there is less of a file than there is on the host.
    """

    schema: int
    tool: str = ""
    unreadable: dict[str, str] = {}
    partial: dict[str, str] = {}


def read_manifest(data: bytes, source: str) -> Manifest:
    """Read the manifest of a capture.

    :param source: where it is from, for messages.
    :raise TopologyError: when it is malformed or of a later form.
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
            raise TopologyError(f"{source}: {path[:40]!r} is no plain path from the root on")
        if len(path) > MAX_PATH:
            raise TopologyError(
                f"{source}: a path has {len(path)} characters; {MAX_PATH} is the most"
            )
    return manifest
