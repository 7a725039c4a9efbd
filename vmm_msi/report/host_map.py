"""A host as a map: its devices, by the SMMU and the ITS that their MSIs pass."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from vmm_msi.pages.blocks import Picture
from vmm_msi.pages.drawing import Arrow, Box, Drawing, Label, fitted, to_svg
from vmm_msi.quantity import quantity

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from vmm_msi.pages.drawing import Shape
    from vmm_msi.types import HostDevice, HostTopology, Its, PciAddress

_Id = TypeVar("_Id")

#: Paths that are drawn, and devices in each and in all; the rest are counted.
_MAX_PATHS = 24
_MAX_DEVICES = 8
_MAX_ROWS = 48

_DEVICES, _SMMUS, _ITSES = 10, 420, 700
_WIDTH = 900
_ROW = 18
_NODE = 44
_TOP = 34


@dataclass(frozen=True)
class _Path:
    """Devices of one PCI segment that share an SMMU and an ITS group.

    :param smmu: None if they bypass all.
    """

    segment: int
    smmu: int | None
    its_group: tuple[int, ...]
    devices: tuple[HostDevice, ...]

    @property
    def addresses(self) -> Iterator[PciAddress]:
        """The addresses of the devices."""
        return (device.address for device in self.devices)

    def assigned_first(self, assigned: frozenset[PciAddress]) -> list[HostDevice]:
        """Return the devices, those that are assigned first."""
        return sorted(self.devices, key=lambda device: device.address not in assigned)

    @property
    def title(self) -> str:
        count = quantity(len(self.devices), "device") if self.devices else "no device listed"
        itses = ", ".join(map(str, self.its_group[:1]))
        its = f"ITS {itses}" if itses else "no ITS"
        return f"segment {self.segment:04x}, {its}: {count}"


def host_picture(host: HostTopology, assigned: Collection[PciAddress] = ()) -> Picture:
    """Return the map of a host.

    :param assigned: the devices of the guest, which are marked.
    """
    paths = _paths(host)
    marked = frozenset(assigned)
    drawing = _drawing(host, paths, marked)
    caption = "The host: devices by the SMMU and the ITS that their MSIs pass"
    if assigned:
        caption += "; a green frame and ● mark what is assigned to the guest"
    return Picture(to_svg(drawing, alone=False), caption, tuple(_lines(paths, marked)))


def host_svg(host: HostTopology, assigned: Collection[PciAddress] = ()) -> str:
    """Return the map of a host as an SVG file."""
    return to_svg(_drawing(host, _paths(host), frozenset(assigned)), alone=True)


def _paths(host: HostTopology) -> list[_Path]:
    """Return every path that a device or a route of the host has, in order of addresses."""
    devices: dict[tuple[int, int | None, tuple[int, ...]], list[HostDevice]] = {}
    for route in host.routes:
        devices.setdefault((route.segment, route.smmu, route.its_group), [])
    for device in host.devices:
        key = (device.address.segment, device.smmu, device.its_group)
        devices.setdefault(key, []).append(device)
    return [_Path(*key, tuple(listed)) for key, listed in devices.items()]


def _drawing(
    host: HostTopology, paths: Sequence[_Path], assigned: frozenset[PciAddress]
) -> Drawing:
    # Those with assigned devices first, if there are too many.
    numbers = sorted(
        range(len(paths)), key=lambda number: assigned.isdisjoint(paths[number].addresses)
    )
    shown = [paths[number] for number in sorted(numbers[:_MAX_PATHS])]
    shapes: list[Shape] = [
        Label(x, 18, text, "strong")
        for x, text in ((_DEVICES, "devices"), (_SMMUS, "SMMUs"), (_ITSES, "ITSes"))
    ]
    y = float(_TOP)
    middles: list[float] = []
    frames: list[Shape] = []
    most = max(1, min(_MAX_DEVICES, _MAX_ROWS // max(1, len(shown))))
    for path in shown:
        boxes, height = _path_shapes(path, y, assigned, most)
        frames += boxes
        middles.append(y + height / 2)
        y += height + 12
    if hidden := len(paths) - len(shown):
        frames.append(Label(_DEVICES, y + 12, f"and {quantity(hidden, 'more path')}", "quiet"))
        y += 24
    through = sorted({path.smmu for path in shown if path.smmu is not None})
    bypass = [None] if any(path.smmu is None for path in shown) else []
    bypass_first = bool(shown) and shown[0].smmu is None
    order = [*bypass, *through] if bypass_first else [*through, *bypass]
    smmus = _column(_SMMUS, order, y)
    itses = _column(_ITSES, sorted({its for path in shown for its in path.its_group}), y)
    shapes += _arrows(shown, middles, smmus, itses)
    shapes += frames
    shapes += [_smmu(box, host, id_) for id_, box in smmus.items()]
    shapes += [_its(box, host.its_by_id.get(id_), id_) for id_, box in itses.items()]
    columns = [box.y + box.height for box in (*smmus.values(), *itses.values())]
    return Drawing(_WIDTH, max([y, *columns]) + 8, f"map of {host.source}", tuple(shapes))


def _column(x: float, ids: Sequence[_Id], bottom: float) -> dict[_Id, Box]:
    """Return a place for each node of a column, by its id, spread from the top to ``bottom``."""
    pitch = max(_NODE + 14, (bottom - _TOP) / max(1, len(ids)))
    return {
        id_: Box(x, _TOP + number * pitch + (pitch - 14 - _NODE) / 2, 190, _NODE)
        for number, id_ in enumerate(ids)
    }


def _path_shapes(
    path: _Path, y: float, assigned: frozenset[PciAddress], most: int
) -> tuple[list[Shape], float]:
    """Return the frame of a path with its devices, at most so many, and its height."""
    devices = path.assigned_first(assigned)
    shown = devices[:most]
    hidden = len(devices) - len(shown)
    height = 28.0 + _ROW * (len(shown) + bool(hidden)) + (6 if shown else 0)
    shapes: list[Shape] = [
        Box(_DEVICES, y, 300, height, style="frame"),
        Label(_DEVICES + 8, y + 18, path.title, "quiet"),
    ]
    row = y + 26
    for device in shown:
        mark = device.address in assigned
        group = f"  group {device.iommu_group}" if device.iommu_group >= 0 else ""
        text = f"{'● ' if mark else ''}{device.address}{group}"
        style = "marked" if mark else ""
        shapes.append(Box(_DEVICES + 8, row, 284, _ROW - 2, (text,), style))
        row += _ROW
    if hidden:
        shapes.append(Label(_DEVICES + 14, row + 13, f"and {hidden:,} more", "quiet"))
    return shapes, height


def _arrows(
    paths: Sequence[_Path],
    middles: Sequence[float],
    smmus: dict[int | None, Box],
    itses: dict[int, Box],
) -> Iterator[Arrow]:
    """Yield the arrows from devices to SMMUs, or to the box for none, and from those to ITSes."""
    through: dict[tuple[int | None, int], None] = {}
    for path, middle in zip(paths, middles, strict=True):
        box = smmus[path.smmu]
        yield Arrow(_DEVICES + 300, middle, box.x, box.y + box.height / 2)
        through |= dict.fromkeys((path.smmu, its) for its in path.its_group[:1])
    for smmu, its in through:
        source, target = smmus[smmu], itses[its]
        yield Arrow(
            source.x + source.width,
            source.y + source.height / 2,
            target.x,
            target.y + target.height / 2,
        )


def _smmu(box: Box, host: HostTopology, id_: int | None) -> Box:
    if id_ is None:
        return replace(_named(box, "no SMMU", "addresses not translated"), style="frame")
    smmu = host.smmu_by_id.get(id_)
    if smmu is None:
        return _named(box, f"SMMU {id_}", "not described")
    stages = "nested" if smmu.nested else "not nested"
    base = "" if smmu.base is None else f" at {smmu.base}"
    return _named(box, f"SMMU {id_}, {stages}", f"SMMUv{smmu.version}{base}")


def _its(box: Box, its: Its | None, id_: int) -> Box:
    if its is None:
        return _named(box, f"ITS {id_}", "not described")
    return _named(box, f"ITS {id_}", f"doorbell {its.doorbell}")


def _named(box: Box, *lines: str) -> Box:
    return Box(
        box.x, box.y, box.width, box.height, tuple(fitted(text, box.width - 8) for text in lines)
    )


def _lines(paths: Sequence[_Path], assigned: frozenset[PciAddress]) -> Iterator[str]:
    """Yield the same as text, in 76 columns."""
    for path in paths:
        smmu = "no SMMU" if path.smmu is None else f"SMMU {path.smmu}"
        yield f"{path.title}, behind {smmu}"
        devices = path.assigned_first(assigned)
        names = [
            f"{device.address}{' (assigned)' if device.address in assigned else ''}"
            for device in devices[:_MAX_DEVICES]
        ]
        if len(devices) > len(names):
            names.append(f"and {len(devices) - len(names):,} more")
        yield from textwrap.wrap(
            ", ".join(names),
            76,
            initial_indent="  ",
            subsequent_indent="  ",
            break_on_hyphens=False,
        )
