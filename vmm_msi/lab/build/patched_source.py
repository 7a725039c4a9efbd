"""Add a patch series to an unpacked source, or remove it, and change no other file.

make compiles again what depends on a file that is newer than its object, so a file that the
patches leave as it was keeps its time, and a file that changes, also back to its original, gets the
current time. A series is never applied to a patched file: the original of every file that was ever
patched is kept, the series is applied to the originals in a folder of its own, and then each file
whose content differs is replaced. So the result depends on the series alone, wherever an earlier
change was interrupted. Nothing is flushed to the disk: a file that a power cut truncates does not
have its digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import LabError
from vmm_msi.lab.build import host_tools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from vmm_msi.lab.build.kernel_flavour import Patch

#: The files of a patch: those with changed lines, and git's renames and copies.
_NAMES = re.compile(
    rb"^--- (?P<old>[^\t\n]+).*\n\+\+\+ (?P<new>[^\t\n]+)"
    rb"|^(?:rename|copy) (?:from|to) (?P<git>.+)",
    re.MULTILINE,
)
_NO_FILE = "/dev/null"


class DamagedSourceError(Exception):
    """A source whose state is unknown; unpack it again."""


class _File(NamedTuple):
    """Content and permissions of a file."""

    content: bytes
    mode: int

    @property
    def digest(self) -> str:
        return hashlib.sha256(b"%o " % self.mode + self.content).hexdigest()


class PatchedSource:
    """An unpacked source and the originals of its patched files.

    :param source: the unpacked source.
    :param folder: for the originals; on the same file system.
    :param patch: runs ``patch`` in a folder: the patch's file, the folder, the action for messages.
    """

    def __init__(
        self, source: Path, folder: Path, patch: Callable[[Path, Path, str], object]
    ) -> None:
        self._source = source
        self._originals = folder / "originals"
        self._record = folder / "originals.json"
        self._scratch = folder / "patching"
        self._patch = patch

    def patched_files(self) -> dict[str, str | None]:
        """Return the files that may be patched, with the digest of each original.

        The digest of a file that a patch adds is ``None``.

        :raise DamagedSourceError: when the record cannot be read.
        """
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise DamagedSourceError(f"reading {self._record}: {error}") from error
        if not isinstance(record, dict):
            raise DamagedSourceError(f"reading {self._record}: it is not a JSON object")
        return record

    def apply(self, patches: Sequence[Patch]) -> list[str]:
        """Make the source that of the series and return the files that were changed.

        :raise LabError: when a patch does not apply; then nothing was changed.
        :raise DamagedSourceError: when an original is not what it was.
        """
        originals = {name: self._original(name, d) for name, d in self.patched_files().items()}
        named = [name for patch in patches for name in files_of(patch)]
        added = {name: _read(self._source / name) for name in named if name not in originals}
        originals |= added
        wanted = {**originals, **self._apply_to_copies(patches, named, originals)}
        if added:
            self._keep(originals, added)
        changed = [name for name, file in wanted.items() if _read(self._source / name) != file]
        for name in changed:
            self._write(self._source / name, wanted[name])
        host_tools.remove_folder(self._scratch)
        return changed

    def _original(self, name: str, digest: str | None) -> _File | None:
        if digest is None:
            return None
        file = _read(self._originals / name)
        if file is None or file.digest != digest:
            raise DamagedSourceError(f"reading {self._originals / name}: it is not the original")
        return file

    def _apply_to_copies(
        self, patches: Sequence[Patch], named: Sequence[str], originals: dict[str, _File | None]
    ) -> dict[str, _File | None]:
        """Return the patched files."""
        host_tools.remove_folder(self._scratch)
        tree = self._scratch / "tree"
        tree.mkdir(parents=True)
        for name in named:
            self._write(tree / name, originals[name])
        for patch in patches:
            file = self._scratch / patch.name
            file.write_bytes(patch.content)
            self._patch(file, tree, patch.name)
        return {name: _read(tree / name) for name in named}

    def _keep(self, originals: dict[str, _File | None], added: dict[str, _File | None]) -> None:
        """Keep originals, before the first of these files is changed."""
        for name, file in added.items():
            self._write(self._originals / name, file)
        digests = {name: file and file.digest for name, file in originals.items()}
        text = json.dumps(digests, indent=1, sort_keys=True)
        self._write(self._record, _File(text.encode(), 0o644))

    def _write(self, path: Path, file: _File | None) -> None:
        """Replace a file in one step, or remove it."""
        if file is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._scratch.mkdir(exist_ok=True)
        part = self._scratch / "part"
        with part.open("wb") as stream:
            stream.write(file.content)
            os.fchmod(stream.fileno(), file.mode)
        part.rename(path)


def files_of(patch: Patch) -> Iterator[str]:
    """Yield the files that a patch names, without their first folder, as ``patch -p1`` does.

    :raise LabError: when a file is outside the source.
    """
    for match in _NAMES.finditer(patch.content):
        names = [match["git"]] if match["git"] else [match["old"], match["new"]]
        for text in (os.fsdecode(name) for name in names):
            if text == _NO_FILE:
                continue
            path = PurePosixPath(text)
            parts = path.parts if match["git"] else path.parts[1:]
            if path.is_absolute() or not parts or ".." in parts:
                raise LabError(f"applying {patch.name}: {text} is outside the source")
            yield "/".join(parts)


def _read(path: Path) -> _File | None:
    try:
        return _File(path.read_bytes(), path.stat().st_mode & 0o777)
    except (FileNotFoundError, NotADirectoryError):
        return None
