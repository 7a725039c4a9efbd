"""Read the emulated board's ACPI tables, and change what the lab's kernel needs otherwise.

Linux offers a vIOMMU only behind an SMMU that has S2FWB, or if firmware sets CANWBS for the
devices (``drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-iommufd.c`` arm_smmu_get_viommu_size). QEMU's
SMMUv3 has no S2FWB and QEMU's IORT does not set CANWBS, although the emulated memory system, which
has no caches, honours it. So the kernel gets a copy of the IORT with CANWBS set, through Linux's
``Documentation/admin-guide/acpi/initrd_table_override.rst``.

A board with several ITSes has all but the first in no table, so IORT and MADT get them.

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
from vmm_msi.host.firmware.acpi import parse_acpi
from vmm_msi.host.firmware.acpi_table import read_table
from vmm_msi.host.firmware.iort import parse_iort
from vmm_msi.host.firmware.madt import parse_madt
from vmm_msi.host.resolve import find_route
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build.cpio import Archive
from vmm_msi.lab.machine.acpi_edit import override_path
from vmm_msi.lab.machine.host_xml import BUS_STEP
from vmm_msi.lab.machine.iort_edit import DeviceIds, with_canwbs, with_its_groups
from vmm_msi.lab.machine.madt_edit import with_itses
from vmm_msi.types import Its, Pa

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.lab.build.root import LabRoot
    from vmm_msi.lab.machine.shape import Shape
    from vmm_msi.types import HostTopology, PciAddress

_IORT, _MADT = "IORT", "APIC"
#: The tables that are kept: the host's SMMUs, ITSes and devices are read from them.
TABLES = (_IORT, _MADT)

#: Base and step of the ITSes after the first (``vmm_msi/lab/qemu/its-count.patch``).
_EXTRA_ITS, _ITS_STEP = 0x0B00_0000, 0x2_0000
#: DeviceIDs of one bus.
_BUS = 1 << 8

_VERSION = 1
#: The packages whose versions determine the board's tables.
_PACKAGES = ("qemu-system-arm", "qemu-system-common", "qemu-efi-aarch64", "libvirt-daemon")


@dataclass(frozen=True)
class Board:
    """The tables of one board.

    :ivar folder: contains :data:`TABLES` as QEMU wrote them.
    :ivar shape: the host's shape.
    :ivar canwbs: its kernel gets an IORT that sets CANWBS.
    """

    folder: Path
    shape: Shape
    canwbs: bool = True

    @cached_property
    def topology(self) -> HostTopology:
        """The board's SMMUs, ITSes and routes, as its kernel reads them."""
        tables = {name: self._table(name) for name in TABLES} | self._changed
        return parse_acpi(tables[_IORT], tables[_MADT], str(self.folder), self.shape.granule)

    def its_of(self, device: PciAddress) -> Its:
        """Return the ITS of a device of the board.

        :raise LabError: when the tables lead it to none.
        """
        route = find_route(self.topology, device.segment, device.rid)
        for its in self.topology.itses:
            if route is not None and its.id in route.its_group[:1]:
                return its
        raise LabError(f"reading the board's tables: they lead {device} to no ITS")

    def its_base(self, device: PciAddress) -> Pa:
        """Return the base of a device's ITS.

        :raise LabError: when the tables lead it to none.
        """
        return self.its_of(device).base

    @cached_property
    def override(self) -> bytes:
        """The archive to prepend to the initial RAM file system; empty without a changed table.

        It is not compressed: Linux searches for tables before it can decompress anything.

        :raise LabError: when the cached tables are gone.
        """
        archive = Archive()
        for name, table in self._changed.items():
            archive.add_file(override_path(name), table)
        return archive.encode() if self._changed else b""

    @cached_property
    def _changed(self) -> dict[str, bytes]:
        """The tables that the kernel gets in place of QEMU's."""
        changed = {}
        iort = self._table(_IORT)
        if self.shape.its_count > 1:
            madt = self._table(_MADT)
            itses = self._extra_itses(madt)
            iort = with_its_groups(iort, self._device_ids(itses), self._source(_IORT))
            changed[_MADT] = with_itses(madt, itses, self._source(_MADT))
        if self.canwbs:
            iort = with_canwbs(iort, self._source(_IORT))
        if self.canwbs or self.shape.its_count > 1:
            changed[_IORT] = iort
        return changed

    def _extra_itses(self, madt: bytes) -> list[Its]:
        """Return the ITSes after the first, which is in QEMU's tables."""
        (first,) = parse_madt(madt, self._source(_MADT))
        return [
            Its(first.id + number, Pa(_EXTRA_ITS + (number - 1) * _ITS_STEP))
            for number in range(1, self.shape.its_count)
        ]

    def _device_ids(self, itses: Sequence[Its]) -> list[DeviceIds]:
        """Return the DeviceIDs of ``itses``: those of a root port's bus have the same one.

        On this board a DeviceID is a RequesterID.
        """
        ports = [
            (BUS_STEP * (smmu + 1) + 1 + slot, self.shape.its_of(smmu, slot))
            for smmu in range(self.shape.smmus)
            for slot in range(len(self.shape.behind(smmu)))
        ]
        return [
            DeviceIds(bus * _BUS, (bus + 1) * _BUS - 1, itses[number - 1].id)
            for bus, number in ports
            if number
        ]

    def _source(self, name: str) -> str:
        return str(self.folder / name)

    def _table(self, name: str) -> bytes:
        path = self.folder / name
        data = read_table(path)
        if data is None:
            raise LabError(f"reading the board's tables: {path} is gone; start the lab again")
        return data


def ensure_board(
    xml: DomainXml,
    root: LabRoot,
    shape: Shape,
    capture: Callable[[], Mapping[str, object]],
    cache: Path | None = None,
    *,
    emulator: str | None = None,
    canwbs: bool = True,
) -> Board:
    """Return the board that ``xml`` describes; call ``capture`` for its tables the first time.

    :param xml: the emulated host, without anything that changes from one start to the next.
    :param root: the root whose QEMU and firmware write the tables.
    :param shape: the host's shape.
    :param capture: boots the host without correction and returns its tables, in base64 by name.
    :param cache: the folder of the cache; this user's when ``None``.
    :param emulator: the version of a QEMU that is not the root's.
    :param canwbs: the kernel gets an IORT that sets CANWBS.
    :raise LabError: when the tables cannot be read or cached.
    :raise TopologyError: when one of them is malformed.
    """
    made_from = {
        "version": _VERSION,
        "xml": xml_parse.serialise(xml.root),
        "packages": _versions(root),
        **({} if emulator is None else {"emulator": emulator}),
    }
    words = (root.suite, root.architecture)
    place = caches.entry(cache, "board", "the board's tables", words, made_from)

    def read() -> Board | None:
        whole = all((place.path / name).is_file() for name in TABLES)
        return Board(place.path, shape, canwbs) if whole else None

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
