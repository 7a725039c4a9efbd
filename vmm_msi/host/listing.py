"""Read the listings of a host that people post: IOMMU groups, reserved regions, ``lspci``.

They are read as far as they go: functions, their IOMMU groups, drivers and capabilities. Forms:

- ``find /sys/kernel/iommu_groups -type l``, ``ls -l`` of these folders, ``ls -l
  /sys/bus/pci/devices/*/iommu_group``, and the kernel's "Adding to iommu group";
- the loop that prints ``IOMMU Group 12:`` with the lines of ``lspci -nns``;
- ``lspci``, with ``-v`` to ``-vvv``, ``-k``, ``-n``, ``-nn`` or ``-D``: pciutils ``lspci.c``
  show_terse and show_verbose, ``ls-caps.c`` and ``ls-ecaps.c``;
- ``lspci -vmm``, with ``-k``: show_machine of the same file;
- ``reserved_regions`` with the paths of the files, as ``grep`` and ``head`` print them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.errors import InputError, TopologyError
from vmm_msi.host.join import host_of_functions
from vmm_msi.host.pci.reserved_regions import parse_reserved_regions
from vmm_msi.host.pci.sysfs import MAX_FUNCTIONS
from vmm_msi.types import PciAddress, PciFunction, ReservedRegion

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.types import HostTopology

#: Longest line that is read.
_MAX_LINE = 2000
#: Limit of reserved regions in a listing.
_MAX_REGIONS = 100_000

_pattern = partial(re.compile, flags=re.IGNORECASE)
_ADDRESS = r"((?:[0-9a-f]{4}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7])"
_QUOTE = _pattern(r"(?:[>|] ?)+")
_IN_GROUP = _pattern(rf"(?:^\s*(?:\./)?|iommu_groups/)(\d{{1,9}})/devices/{_ADDRESS}\b")
_GROUP_LINK = _pattern(
    rf"{_ADDRESS}(?:/iommu_group -> \S*/iommu_groups/|: Adding to iommu group )(\d{{1,9}})\b"
)
_GROUP_FOLDER = _pattern(r"\S*iommu_groups/(\d{1,9})/devices/?:?\s*$")
_LISTED_LINK = _pattern(rf"\s{_ADDRESS} -> ")
_NAMES = _pattern(rf"\s*{_ADDRESS}(?:\s+{_ADDRESS})*\s*$")
_GROUP = _pattern(r"(\s*)(?:IOMMU[ _-]?)?group[ :#]\s*(\d{1,9})\b[: \t]*(.*)")
#: A device in the lines of a group: scripts print ids or marks in brackets before it.
_MEMBER = _pattern(rf"\s*(?:\[[^\]]*\]\s*)*{_ADDRESS}(?=\s|$)")
_FUNCTION = _pattern(
    rf"{_ADDRESS}\s+(?:([a-z][^:\[]*?)(?: \[([0-9a-f]{{4}})\])?:"
    r"|([0-9a-f]{4}): [0-9a-f]{4}:)"
)
_PROG_IF = _pattern(r"\(prog-if ([0-9a-f]{2})\b")
_DRIVER = _pattern(r"\s+Kernel driver in use: (\S+)")
_NODE = _pattern(r"\s+NUMA node: (\d{1,6})\b")
_MSIX = _pattern(r"\s+Capabilities: \[[0-9a-f]+\] MSI-X: Enable[+-] Count=(\d{1,5})\b")
_MSI = _pattern(r"\s+Capabilities: \[[0-9a-f]+\] MSI: Enable[+-] Count=\d+/(\d{1,2})\b")
_EXTENDED = _pattern(r"\s+Capabilities: \[[0-9a-f]{3}(?: v\d+)?\]")
_ATS, _PASID = "Address Translation Service", "Process Address Space ID"
_REGION = _pattern(r"(?:.*?iommu_groups/(\d{1,9})/reserved_regions:)?\s*(0x\S+ 0x\S+ [a-z-]+)\s*$")
_REGIONS_FILE = _pattern(r".*iommu_groups/(\d{1,9})/reserved_regions(?: <==)?:?\s*$")

#: A line of lspci -vmm, and the first line of lspci -t.
_RECORD = _pattern(r"(slot|device|class|driver|numanode|iommugroup):\t(.*)$")
_CODE = _pattern(r"[0-9a-f]{4}\]")
_TREE = _pattern(r"\s*[-+|`\\]*-\[(?:[0-9a-f]{4}:)?[0-9a-f]{2}\]-")

#: Class codes by the names of pci.ids: those of bridges and of devices that are often assigned.
_CLASSES = {
    "non-volatile memory controller": 0x010800,
    "sata controller": 0x010600,
    "serial attached scsi controller": 0x010700,
    "raid bus controller": 0x010400,
    "ethernet controller": 0x020000,
    "infiniband controller": 0x020700,
    "network controller": 0x028000,
    "vga compatible controller": 0x030000,
    "3d controller": 0x030200,
    "display controller": 0x038000,
    "audio device": 0x040300,
    "host bridge": 0x060000,
    "isa bridge": 0x060100,
    "pci bridge": 0x060400,
    "bridge": 0x068000,
    "usb controller": 0x0C0300,
    "smbus": 0x0C0500,
    "co-processor": 0x0B4000,
    "processing accelerators": 0x120000,
}


@dataclass
class Listing:
    """What a text lists.

    :param functions: by address.
    :param reserved: reserved regions by IOMMU group; those of None are of an unnamed one.
    :param has_tree: the text has the tree of ``lspci -t``, which is not read.
    """

    functions: dict[PciAddress, PciFunction] = field(default_factory=dict)
    reserved: dict[int | None, list[ReservedRegion]] = field(default_factory=dict)
    has_tree: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether the text is not a listing."""
        return not (self.functions or self.reserved or self.has_tree)


def read_listing(lines: Iterable[bytes], source: str) -> Listing:
    """Read a text line by line; lines of other forms are skipped.

    :param source: the file, for messages.
    :raise TopologyError: when it lists more functions or regions than a host has.
    """
    reader = _Reader(source)
    for line in lines:
        if len(line) <= _MAX_LINE:
            text = line.decode("utf-8", "replace").rstrip()
            quote = _QUOTE.match(text)
            reader.line(text[quote.end() :] if quote else text)
    return reader.listing


def host_of_listing(listing: Listing, source: str) -> HostTopology:
    """Return the host that a listing describes.

    :raise TopologyError: when it has no functions.
    """
    better = "vmm-msi topology capture on that host, as root, writes all of it to one file"
    if not listing.functions and not listing.reserved:
        raise TopologyError(
            f"{source}: the tree of lspci -t, which has no IOMMU groups; use lspci -Dvvvnnk as "
            f"root; {better}"
        )
    if not listing.functions:
        regions = ", ".join(map(str, listing.reserved.get(None, ())))
        raise TopologyError(
            f"{source}: reserved regions of an unknown IOMMU group ({regions}), but no devices; "
            f"{better}"
        )
    members: dict[int, list[PciAddress]] = {}
    for address, function in sorted(listing.functions.items()):
        if function.iommu_group is not None:
            members.setdefault(function.iommu_group, []).append(address)
    groups = {group: tuple(addresses) for group, addresses in members.items()}
    reserved = {
        group: tuple(listing.reserved[group]) if group in listing.reserved else None
        for group in groups
    }
    functions = [
        function
        if function.iommu_group is None
        else replace(
            function,
            members=groups[function.iommu_group],
            reserved=reserved[function.iommu_group],
        )
        for _address, function in sorted(listing.functions.items())
    ]
    gap = (
        f"{source} is a listing of PCI functions: it has neither SMMUs and ITSes nor how devices "
        f"reach them; {better}, or name a second HOST with the tables"
    )
    return replace(host_of_functions(source, functions, missing=(gap,)), lists_all_functions=False)


class _Reader:
    """Reads line by line.

    :ivar group: the group whose devices the following lines have.
    :ivar function: the function that the following indented lines describe.
    :ivar regions: the group whose reserved regions the following lines have.
    """

    def __init__(self, source: str) -> None:
        self.listing = Listing()
        self._source = source
        self._group: int | None = None
        self._function: PciAddress | None = None
        self._regions: int | None = None
        self._count = 0

    def line(self, text: str) -> None:
        """Read one line."""
        if _TREE.match(text):
            self.listing.has_tree = True
        elif not (self._record(text) or self._region(text) or self._member(text)):
            self._lspci(text)

    def _record(self, text: str) -> bool:
        """Read a line of lspci -vmm."""
        match = _RECORD.match(text)
        if match is None:
            return False
        key, value = match[1].lower(), match[2].strip()
        if key in {"slot", "device"} and _NAMES.match(value):
            self._group, self._function = None, self._add(value)
        elif self._function is None:
            return False
        elif key == "class":
            name, _, number = value.partition(" [")
            code = int(number[:4], 16) << 8 if _CODE.match(number) else _CLASSES.get(name.lower())
            self._add(self._function, class_code=code)
        elif key == "driver":
            self._add(self._function, driver=value)
        elif value.isascii() and value.isdigit() and len(value) < 10:
            what = "numa_node" if key == "numanode" else "iommu_group"
            self._add(self._function, **{what: int(value)})
        return True

    def _region(self, text: str) -> bool:
        file = _REGIONS_FILE.match(text)
        if file is not None:
            self._regions = int(file[1])
            return True
        match = _REGION.match(text)
        if match is None:
            return False
        group = self._regions if match[1] is None else int(match[1])
        try:
            regions = parse_reserved_regions(match[2], self._source)
        except InputError:
            return False
        self._count += 1
        if self._count > _MAX_REGIONS:
            raise TopologyError(
                f"{self._source}: more than {_MAX_REGIONS} reserved regions, the limit of a listing"
            )
        self.listing.reserved.setdefault(group, []).extend(regions)
        return True

    def _member(self, text: str) -> bool:
        """Read a line about the group of a device."""
        if match := _IN_GROUP.search(text):
            self._add(match[2], iommu_group=int(match[1]))
            return True
        if match := _GROUP_LINK.search(text):
            self._add(match[1], iommu_group=int(match[2]))
            return True
        if match := _GROUP_FOLDER.match(text):
            self._group, self._function = int(match[1]), None
            return True
        match = _GROUP.match(text)
        if match is None:
            return self._group is not None and self._in_group(text)
        number = int(match[2])
        if match[1] and not match[3] and self._function is not None:
            self._add(self._function, iommu_group=number)
            return True
        self._group, self._function = number, None
        if match[3]:
            self._in_group(match[3])
        return True

    def _in_group(self, text: str) -> bool:
        """Read a line below the name of a group."""
        if _NAMES.match(text):
            for name in text.split():
                self._add(name, iommu_group=self._group)
            return True
        match = _LISTED_LINK.search(text)
        if match is not None:
            self._add(match[1], iommu_group=self._group)
            return True
        match = _MEMBER.match(text)
        if match is None:
            return False
        self._described(match[1], text[match.start(1) :], iommu_group=self._group)
        return True

    def _lspci(self, text: str) -> None:
        match = _FUNCTION.match(text)
        if match is not None:
            self._group = None
            self._described(match[1], text)
            return
        address = self._function
        if address is None or not text[:1].isspace():
            return
        if match := _DRIVER.match(text):
            self._add(address, driver=match[1])
        elif match := _NODE.match(text):
            self._add(address, numa_node=int(match[1]))
        elif match := _MSIX.match(text):
            self._add(address, vectors=int(match[1]))
        elif match := _MSI.match(text):
            if self.listing.functions[address].vectors is None:
                self._add(address, vectors=int(match[1]))
        elif _EXTENDED.match(text):
            # lspci lists either all extended capabilities or, without root, none.
            known = self.listing.functions[address]
            self._add(
                address,
                ats=bool(known.ats) or _ATS in text,
                pasid=bool(known.pasid) or _PASID in text,
            )

    def _described(self, name: str, text: str, iommu_group: int | None = None) -> None:
        """Add a function by its line of lspci."""
        code = None
        if match := _FUNCTION.match(text):
            number = match[3] or match[4]
            if number is not None:
                prog_if = _PROG_IF.search(text)
                code = int(number, 16) << 8 | (int(prog_if[1], 16) if prog_if else 0)
            else:
                code = _CLASSES.get(match[2].strip().lower())
        self._function = self._add(name, class_code=code, iommu_group=iommu_group)

    def _add(self, name: str | PciAddress, **values: object) -> PciAddress | None:
        """Add the values that are not None to a function."""
        try:
            address = name if isinstance(name, PciAddress) else PciAddress.parse(_full(name))
        except InputError:
            return None
        functions = self.listing.functions
        if address not in functions and len(functions) >= MAX_FUNCTIONS:
            raise TopologyError(
                f"{self._source}: more than {MAX_FUNCTIONS} PCI functions, the limit of a host"
            )
        given = {key: value for key, value in values.items() if value is not None}
        known = functions.get(address, PciFunction(address))
        functions[address] = replace(known, **given)  # type: ignore[arg-type]
        return address


def _full(name: str) -> str:
    """Return the address of a function with its segment, which lspci omits if all are 0."""
    return name if name.count(":") == 2 else f"0000:{name}"
