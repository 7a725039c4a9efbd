"""Read the emulated board's ACPI tables, and correct the one fact in them that blocks nesting.

Linux offers a vIOMMU only behind an SMMU that has S2FWB, or if firmware sets CANWBS for the
devices (``drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-iommufd.c`` arm_smmu_get_viommu_size). QEMU's
SMMUv3 has no S2FWB and QEMU's IORT does not set CANWBS, although the emulated memory system, which
has no caches, honours it. So the kernel gets a copy of the IORT with CANWBS set, through Linux's
``Documentation/admin-guide/acpi/initrd_table_override.rst``.

A first boot without the copy, once for each board, provides the tables to correct.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from vmm_msi.domxml import parse as xml_parse
from vmm_msi.errors import LabError
from vmm_msi.host.firmware.acpi import load_acpi
from vmm_msi.host.firmware.acpi_table import read_table
from vmm_msi.host.firmware.iort import parse_iort
from vmm_msi.host.firmware.madt import parse_madt
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build.cpio import Archive
from vmm_msi.lab.machine.iort_edit import OVERRIDE_PATH, with_canwbs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.lab.build.root import LabRoot
    from vmm_msi.types import Granule, HostTopology

#: The tables that are kept: the host's SMMUs, ITSes and devices are read from them.
TABLES = ("IORT", "APIC")

_VERSION = 1
#: The packages whose versions determine the board's tables.
_PACKAGES = ("qemu-system-arm", "qemu-system-common", "qemu-efi-aarch64", "libvirt-daemon")


@dataclass(frozen=True)
class Board:
    """The tables of one board.

    :ivar folder: contains :data:`TABLES` as QEMU wrote them.
    :ivar granule: page size of the kernel that runs on it.
    """

    folder: Path
    granule: Granule

    @cached_property
    def topology(self) -> HostTopology:
        """The board's SMMUs, ITSes and routes."""
        return load_acpi(self.folder, self.granule)

    @cached_property
    def override(self) -> bytes:
        """The archive to prepend to the initial RAM file system.

        It is not compressed: Linux searches for tables before it can decompress anything.

        :raise LabError: when the cached tables are gone.
        """
        path = self.folder / "IORT"
        data = read_table(path)
        if data is None:
            raise LabError(f"reading the board's tables: {path} is gone; start the lab again")
        archive = Archive()
        archive.add_file(OVERRIDE_PATH, with_canwbs(data, str(path)))
        return archive.encode()


def ensure_board(
    xml: DomainXml,
    root: LabRoot,
    granule: Granule,
    capture: Callable[[], Mapping[str, object]],
    cache: Path | None = None,
) -> Board:
    """Return the board that ``xml`` describes; call ``capture`` for its tables the first time.

    :param xml: the emulated host, without anything that changes from one start to the next.
    :param root: the root whose QEMU and firmware write the tables.
    :param capture: boots the host without correction and returns its tables, in base64 by name.
    :param cache: the folder of the cache; this user's when ``None``.
    :raise LabError: when the tables cannot be read or cached.
    :raise TopologyError: when one of them is malformed.
    """
    made_from = {
        "version": _VERSION,
        "xml": xml_parse.serialise(xml.root),
        "packages": _versions(root),
    }
    words = (root.suite, root.architecture)
    place = caches.entry(cache, "board", "the board's tables", words, made_from)

    def read() -> Board | None:
        whole = all((place.path / name).is_file() for name in TABLES)
        return Board(place.path, granule) if whole else None

    def build(work: Path) -> Path:
        for name, data in _decoded(capture()).items():
            (work / name).write_bytes(data)
        return work

    return caches.fill(place, read, build)[0]


def _versions(root: LabRoot) -> dict[str, str]:
    """Return the versions of the packages that determine the tables."""
    marker = root.path.parent / "root.json"
    try:
        packages = json.loads(marker.read_text(encoding="utf-8"))["packages"]
        return {name: packages[name] for name in _PACKAGES if name in packages}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"reading the lab's root: {marker}: {error}; remove {marker.parent} and "
            "run vmm-msi lab root"
        ) from error


def _decoded(answer: Mapping[str, object]) -> dict[str, bytes]:
    """Return the tables in the agent's answer, checked."""
    tables = {}
    for name in TABLES:
        try:
            tables[name] = base64.b64decode(str(answer[name]), validate=True)
        except (KeyError, binascii.Error) as error:
            raise LabError(
                f"reading the tables of the emulated host: {name} is missing or not base64: {error}"
            ) from error
    source = "the emulated host's {}"
    parse_iort(tables["IORT"], source.format("IORT"))
    parse_madt(tables["APIC"], source.format("APIC"))
    return tables
