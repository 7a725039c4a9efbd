"""Pack this package itself for the emulated host: the part that changes with every edit.

It is a second archive, unpacked over the user land, so a change of the package costs a second, not
a build of the user land. Its cache entry is a file named after a hash of its content.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import LabError
from vmm_msi.lab.build import bytecode, userland
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build.cpio import Archive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.lab.build.root import LabRoot

#: Increment when the same files must give a different archive.
VERSION = 1

_DISTRIBUTION = "vmm-msi"
_PACKAGES = ("vmm_msi", "vmm_msi.templates", "vmm_msi_plugins")
_INSIDE = "usr/lib/python3/dist-packages"
#: Files that importlib.metadata needs to find the plugins.
_METADATA = ("METADATA", "entry_points.txt")
_KEPT = 4
_PACKING = "packing vmm-msi for the emulated host"


def package_layer(root: LabRoot, cache: Path | None = None) -> Path:
    """Return the archive with this package, its plugins and ``/init``; build it if needed.

    :param root: the root whose Python compiles; of the suite that the user land is from.
    :param cache: the folder of the cache; this user's when ``None``.
    :raise LabError: when it cannot be built.
    """
    files = dict(_files())
    place = (cache or caches.default_cache()).absolute() / _name(files, root)
    caches.check_cache(place.parent, _PACKING)
    if place.is_file():
        return place
    try:
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        caches.check_cache(place.parent, _PACKING)
        with tempfile.TemporaryDirectory(prefix="layer-", dir=place.parent) as folder:
            packed = Path(folder) / place.name
            packed.write_bytes(_pack(files, Path(folder) / "tree", root))
            packed.rename(place)
        _sweep(place)
    except OSError as error:
        where = error.filename or place
        raise LabError(f"{_PACKING}: {where}: {error.strerror}") from error
    return place


def _files() -> Iterator[tuple[str, bytes]]:
    """Yield name, relative to the folder of packages, and content of every file."""
    for package in _PACKAGES:
        below = package.replace(".", "/")
        for folder in _locations(package):
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.suffix != ".pyc":
                    yield f"{below}/{path.relative_to(folder)}", path.read_bytes()
    installed = _installed()
    metadata = f"vmm_msi-{installed.version}.dist-info"
    for name in _METADATA:
        text = installed.read_text(name)
        if text is not None:
            yield f"{metadata}/{name}", text.encode()


def _installed() -> importlib.metadata.Distribution:
    """Return the installed distribution, not the metadata that setuptools leaves beside the source.

    :raise LabError: when vmm-msi is not installed.
    """
    for distribution in importlib.metadata.distributions(name=_DISTRIBUTION):
        if distribution.read_text(_METADATA[0]) is not None:
            return distribution
    raise LabError(f"{_PACKING}: vmm-msi is not installed; run pip install .")


def _locations(package: str) -> list[Path]:
    """Return the folders of a package, wherever an editable install has them.

    :raise LabError: when it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LabError(f"{_PACKING}: there is no package {package}; install vmm-msi with pip")
    return [Path(folder) for folder in spec.submodule_search_locations]


def _name(files: dict[str, bytes], root: LabRoot) -> str:
    digest = hashlib.sha256(f"{VERSION} {bytecode.python_version(root.path)}\0".encode())
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return f"layer-{digest.hexdigest()[:12]}.cpio.zst"


def _pack(files: dict[str, bytes], tree: Path, root: LabRoot) -> bytes:
    for name, content in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    sources = sorted(name for name in files if name.endswith(".py"))
    bytecode.compile_files(root, tree, sources, f"/{_INSIDE}")
    archive = Archive()
    archive.add_tree(tree, _INSIDE)
    archive.add_file("init", files["vmm_msi/lab/build/init"], 0o755)
    return userland.compress(archive.encode(), 1)


def _sweep(place: Path) -> None:
    """Remove all but the newest archives; a running command keeps its archive open."""
    # Another command may sweep at the same time, so a file may already be gone.
    with contextlib.suppress(FileNotFoundError):
        others = sorted(place.parent.glob("layer-*.cpio.zst"), key=os.path.getmtime, reverse=True)
        for old in others[_KEPT:]:
            old.unlink(missing_ok=True)
