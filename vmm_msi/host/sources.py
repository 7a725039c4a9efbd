"""Read a HOST: recognise each description that a command names and load what it reports.

:func:`read_host` is the one way in. It passes the files of a host (this machine, a folder laid out
like ``/``, a capture) to :mod:`vmm_msi.host.live`, firmware tables to :mod:`vmm_msi.host.firmware`,
a scenario file to :mod:`vmm_msi.host.scenario` and a libvirt URI to its caller's connection.
:mod:`vmm_msi.host.join` then merges the sources into one topology.
"""

from __future__ import annotations

import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError, UsageError
from vmm_msi.host.files import THIS_MACHINE
from vmm_msi.host.join import join
from vmm_msi.types import Granule, HostTopology

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vmm_msi.host.crosscheck import Disagreement
    from vmm_msi.host.files import HostTree

    #: Returns the host that a file of another form describes, by its path and content; None if it
    #: describes none.
    ReadOther = Callable[[str, bytes], HostTopology | None]
    #: Asks the libvirt at a URI for the host's PCI functions.
    AskLibvirt = Callable[[str], HostTopology]

#: How the name of a capture ends.
CAPTURE = ".tar.zst"

#: The forms of a HOST that is a path, for messages and ``--help``.
FORMS = (
    "a TOML file with [host], a device tree blob (magic d00dfeed), a folder with the ACPI tables "
    "IORT and APIC, one such table, the output of acpidump or iasl -d, a folder laid out like the "
    f"host's /, a capture ({CAPTURE}), or a listing of lspci or of IOMMU groups"
)
_VALID = f"a host is {FORMS}"
_DEVICE_TREE_MAGIC = b"\xd0\x0d\xfe\xed"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # RFC 8878, 3.1.1
_OTHER_MAGIC = frozenset({_DEVICE_TREE_MAGIC, _ZSTD_MAGIC})
#: Limit in bytes of a text, such as all tables of a large server as acpidump prints them.
MAX_TEXT = 32 << 20
#: Limit of its lines: lspci -vvv prints 60 for a function.
MAX_LINES = 1_000_000


@dataclass(frozen=True)
class HostSources:
    """The sources about one host.

    :param name: what messages call the host.
    :param sources: what each source reports, the most trusted first.
    :param trees: the host's files, for each HOST that has them; empty if all are descriptions.
    """

    name: str
    sources: tuple[HostTopology, ...]
    trees: tuple[HostTree, ...] = ()

    @property
    def tree(self) -> HostTree | None:
        """The host's files; None if there are only descriptions."""
        return self.trees[0] if self.trees else None

    @cached_property
    def topology(self) -> HostTopology:
        """The sources merged: SMMUs, ITSes, routes, PCI functions."""
        return join(self.sources, self.name)

    @cached_property
    def disagreements(self) -> tuple[Disagreement, ...]:
        """What the sources describe differently."""
        from vmm_msi.host.crosscheck import disagreements

        return tuple(disagreements(self.sources))


def read_host(
    names: Sequence[Path | str] = (),
    granule: Granule | None = None,
    *,
    root: Path | None = None,
    ask_libvirt: AskLibvirt | None = None,
    read_other: ReadOther | None = None,
) -> HostSources:
    """Read every HOST that is named; this machine if none is.

    :param names: in order of trust: a path for a description, a string for a libvirt URI.
    :param granule: page size of the host's kernel, used if no source reports it.
    :param root: a folder laid out like the host's ``/``, more trusted than ``names``.
    :param ask_libvirt: required for a libvirt URI.
    :param read_other: reads a file of none of the known forms.
    :raise TopologyError: when a description has no known form, cannot be read or is malformed, or
        when two of them describe different hosts.
    :raise ScenarioError: when a TOML file has an error.
    """
    from vmm_msi.host.files.folder import FolderTree, this_machine
    from vmm_msi.host.live import read_sources

    hosts: list[tuple[str, tuple[HostTopology, ...]]] = []
    trees: list[HostTree] = []

    def add_tree(tree: HostTree) -> None:
        trees.append(tree)
        hosts.append((tree.source, read_sources(tree, granule)))

    if root is not None:
        if not root.is_dir():
            raise TopologyError(f"{root}: not a folder; use one laid out like the host's /")
        add_tree(FolderTree(root))
    elif not names:
        add_tree(this_machine())
    for name in names:
        if isinstance(name, str):
            if ask_libvirt is None:
                raise UsageError(f"{name}: a libvirt URI; {_VALID}")
            hosts.append((name, (ask_libvirt(name),)))
            continue
        opened = _open(name, granule, read_other)
        if isinstance(opened, HostTopology):
            hosts.append((str(name), (opened,)))
        else:
            add_tree(opened)
    if len(hosts) > 1:
        from vmm_msi.host.one_host import check_one_host

        check_one_host(hosts)
    shown = [str(name) for name in (root, *names) if name is not None]
    sources = tuple(source for _name, described in hosts for source in described)
    return HostSources(" + ".join(shown) or THIS_MACHINE, sources, tuple(trees))


def check_this_machine(host: HostTopology) -> None:
    """Refuse this machine if its files do not show how devices reach SMMUs and ITSes.

    :param host: this machine, as :func:`read_host` reads it.
    :raise UsageError: when it has neither an IORT nor a device tree.
    :raise TopologyError: when its tables cannot be read.
    """
    from vmm_msi.host.live import ACPI_TABLES, DEVICE_TREE

    if host.is_described:
        return
    tables = (ACPI_TABLES / "IORT", DEVICE_TREE)
    if any(map(os.path.exists, tables)):
        raise TopologyError("; ".join(host.missing))
    raise UsageError(
        f"this machine has neither {tables[0]} nor {tables[1]}: it is not an Arm host with an "
        "SMMU; name a HOST that is: a TOML file, a device tree blob, a folder with IORT and APIC, "
        "or a capture"
    )


def _open(
    path: Path, granule: Granule | None, read_other: ReadOther | None
) -> HostTree | HostTopology:
    """Return the host's files if ``path`` has them, else the topology that it describes."""
    try:
        if path.is_dir():
            if (path / "sys").is_dir() and not (path / "IORT").exists():
                from vmm_msi.host.files.folder import FolderTree

                return FolderTree(path)
            from vmm_msi.host.firmware.acpi import load_acpi

            return _with_granule(load_acpi(path, granule or Granule.K4), granule)
        if path.suffix == ".toml":
            from vmm_msi.host.scenario import load_host_toml

            described = load_host_toml(path)
            if granule is None or described.granule_known:
                return described
            return replace(described, granule=granule, granule_known=True)
        if path.name.endswith(CAPTURE):
            from vmm_msi.host.files.archive import open_archive

            return open_archive(path)
        with path.open("rb") as file:
            magic = file.read(4)
            data = b"" if magic in _OTHER_MAGIC else magic + file.read(MAX_TEXT + 1 - len(magic))
    except OSError as failure:
        raise TopologyError(f"{path}: cannot be read: {failure.strerror}; {_VALID}") from failure
    except ValueError as failure:
        raise TopologyError(f"{str(path)!r}: not a file name: {failure}; {_VALID}") from failure
    if magic == _DEVICE_TREE_MAGIC:
        from vmm_msi.host.firmware.device_tree import load_devicetree

        return _with_granule(load_devicetree(path, granule or Granule.K4), granule)
    if magic == _ZSTD_MAGIC:
        raise TopologyError(
            f"{path}: compressed with zstd like a capture, but the name of a capture ends in "
            f"{CAPTURE}: rename it to {path.name.partition('.')[0]}{CAPTURE}"
        )
    if len(data) > MAX_TEXT:
        raise TopologyError(f"{path}: larger than {MAX_TEXT} bytes, the limit of a text; {_VALID}")
    host = _from_text(path, data, granule)
    if host is not None:
        return _with_granule(host, granule)
    host = None if read_other is None else read_other(str(path), data)
    if host is None:
        raise TopologyError(f"{path}: starts with {magic!r}; {_VALID}")
    return host


def _from_text(path: Path, data: bytes, granule: Granule | None) -> HostTopology | None:
    """Return the host that an ACPI table or a text describes; None if it describes none."""
    from vmm_msi.host.firmware.acpi import load_acpi_file

    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        # A shell of Windows writes texts like this.
        data = data.decode("utf-16", "replace").encode()
    if data.count(b"\n") > MAX_LINES:
        raise TopologyError(f"{path}: more than {MAX_LINES} lines, the limit of a text; {_VALID}")
    host = load_acpi_file(path, data, granule or Granule.K4)
    if host is not None:
        return host
    from vmm_msi.host.listing import host_of_listing, read_listing

    listing = read_listing(BytesIO(data), str(path))
    return None if listing.is_empty else host_of_listing(listing, str(path))


def _with_granule(host: HostTopology, granule: Granule | None) -> HostTopology:
    """Return ``host``, whose tables have no page size, with whether ``granule`` is known."""
    return replace(host, granule_known=granule is not None)
