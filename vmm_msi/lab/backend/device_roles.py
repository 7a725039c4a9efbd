"""Assign test devices of the emulated host to the devices of a scenario."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from vmm_msi.errors import LabError, UsageError
from vmm_msi.iommu.linux.raise_msi import EDU
from vmm_msi.lab.machine.shape import GRANULES, RANGES, Shape
from vmm_msi.quantity import quantity
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmm_msi.types import HostDevice, Scenario

#: Test devices in one IOMMU group, at most.
_MOST_IN_GROUP = 2

T = TypeVar("T")


class _Place(NamedTuple):
    """Numbers of an SMMU and an ITS, from 0; that of the ITS is always 0 if any ITS will do."""

    smmu: int
    its: int


#: Devices by their places, those of one IOMMU group together.
_Groups = dict[_Place, list[list[T]]]


def check(scenario: Scenario, *, own_its: bool) -> None:
    """Check that the emulated host can play a scenario.

    :param own_its: MSIs go to the devices' own ITSes.
    :raise UsageError: when it cannot; the message says what works instead.
    """
    host = scenario.host
    if host.granule not in GRANULES:
        raise UsageError(
            f"emulated host: pages of {host.granule} are not supported; valid: "
            f"{', '.join(map(str, GRANULES))}"
        )
    itses, most = {device.its for device in _devices(scenario)}, RANGES["itses"][1]
    if own_its and len(itses) > most:
        raise UsageError(
            f"emulated host: it has up to {most} ITSes, the scenario uses {len(itses)}; use pages "
            "of memory instead (--doorbells witness)"
        )
    for device in _devices(scenario):
        _check_device(scenario, device)


def _check_device(scenario: Scenario, device: HostDevice) -> None:
    reason = None
    if device.smmu is None:
        reason = "is not behind an SMMU, but every test device is"
    elif not scenario.host.smmu_by_id[device.smmu].nested:
        reason = f"is behind SMMU {device.smmu}, which lacks a stage; the emulated ones have both"
    elif device.streams != 1:
        reason = f"has {device.streams} StreamIDs, a test device has one"
    if reason is not None:
        raise UsageError(f"emulated host: {device.address} {reason}")


def shape_for(scenario: Scenario, *, own_its: bool) -> Shape:
    """Return the smallest shape, from the default one up, that can play a scenario.

    :param own_its: MSIs go to the devices' own ITSes.
    :raise UsageError: when no shape can.
    """
    return shape_for_each([scenario], own_its=own_its)


def shape_for_each(scenarios: Sequence[Scenario], *, own_its: bool) -> Shape:
    """Return the smallest shape, from the default one up, that can play each of the scenarios.

    :param scenarios: one or several, of one page size; they are played one after another.
    :param own_its: MSIs go to the devices' own ITSes.
    :raise UsageError: when no shape can.
    """
    needed = [_groups(_devices(scenario), own_its=own_its) for scenario in scenarios]
    places = [place for groups in needed for place in groups]
    default = Shape(granule=scenarios[0].host.granule)
    smmus = max(default.smmus, *(place.smmu + 1 for place in places))
    itses = 1 + max(place.its for place in places) if own_its else None
    numbers = product(*(range(getattr(default, n), RANGES[n][1] + 1) for n in ("devices", "pairs")))
    for devices, pairs in sorted(numbers, key=sum):
        with suppress(UsageError):
            shape = replace(default, smmus=smmus, itses=itses, devices=devices, pairs=pairs)
            if all(_is_enough(shape, groups) for groups in needed):
                return shape
    raise UsageError(
        "emulated host: it has too few test devices for the scenario, with "
        f"{quantity(RANGES['devices'][1], 'device')} and {quantity(RANGES['pairs'][1], 'pair')}"
    )


def _is_enough(shape: Shape, groups: _Groups[HostDevice]) -> bool:
    """Return whether a shape has a test device for each device."""
    free = Counter(
        (_Place(smmu, shape.its_of(smmu, slot)), port.functions)
        for smmu in range(shape.smmus)
        for slot, port in enumerate(shape.behind(smmu))
    )
    return all(
        free[place, size] >= sum(len(group) == size for group in members)
        for place, members in groups.items()
        for size in range(1, _MOST_IN_GROUP + 1)
    )


def assign(
    scenario: Scenario,
    devices: Sequence[Any],
    its_of: Callable[[PciAddress], int] | None = None,
) -> dict[PciAddress, PciAddress]:
    """Return the test device for each of the guest's devices.

    Devices behind one SMMU are played by devices behind one SMMU, an IOMMU group by a group.

    :param devices: the agent's answer to ``devices``.
    :param its_of: returns the id of a test device's ITS, so that devices of one ITS are played by
        devices of one ITS; without it any ITS will do.
    :raise LabError: when the host has too few.
    """
    available = _test_devices(devices, its_of)
    needed = _groups(_devices(scenario), own_its=its_of is not None)
    for name, noun, option in (("smmu", "SMMU", "smmus"), ("its", "ITS", "itses")):
        has, uses = (1 + max(getattr(p, name) for p in ps) for ps in (available, needed))
        if uses > has:
            raise LabError(
                f"emulated host: it has {quantity(has, noun)} with test devices, the "
                f"scenario uses {uses}; use vmm-msi lab up --{option} {uses}"
            )
    roles: dict[PciAddress, PciAddress] = {}
    for place, groups in needed.items():
        free = available.get(place, [])
        for group in groups:
            match = next((members for members in free if len(members) == len(group)), None)
            if match is None:
                raise LabError(
                    f"emulated host: too few test devices for {group[0].address}; start more "
                    "with vmm-msi lab up --devices N --pairs N"
                )
            free.remove(match)
            roles |= {d.address: address for d, address in zip(group, match, strict=True)}
    return roles


def _test_devices(
    devices: Sequence[Any], its_of: Callable[[PciAddress], int] | None
) -> _Groups[PciAddress]:
    """Return the test devices by their places and IOMMU groups."""
    groups: dict[tuple[str, int, int], list[PciAddress]] = defaultdict(list)
    for device in devices:
        if (device["vendor"], device["device"]) == EDU:
            address = PciAddress.parse(device["address"])
            its = 0 if its_of is None else its_of(address)
            groups[str(device["smmu"]), its, int(device["group"])].append(address)
    return _placed({key: sorted(members) for key, members in groups.items()})


def _placed(groups: Mapping[tuple[Any, int, int], list[T]]) -> _Groups[T]:
    """Return groups by their places; their keys are SMMU, ITS and IOMMU group."""
    smmus = sorted({smmu for smmu, _its, _group in groups})
    itses = sorted({its for _smmu, its, _group in groups})
    placed: _Groups[T] = defaultdict(list)
    for (smmu, its, _group), members in sorted(groups.items(), key=lambda item: item[0]):
        placed[_Place(smmus.index(smmu), itses.index(its))].append(members)
    return dict(placed)


def _devices(scenario: Scenario) -> list[HostDevice]:
    by_address = scenario.host.device_by_address
    return [by_address[device.host] for device in scenario.guest.devices]


def _groups(devices: Sequence[HostDevice], *, own_its: bool) -> _Groups[HostDevice]:
    """Return the devices by their places and IOMMU groups.

    :raise UsageError: for a group that no test devices can play.
    """
    groups: dict[tuple[int, int], list[HostDevice]] = defaultdict(list)
    for device in devices:
        groups[device.smmu or 0, device.iommu_group].append(device)
    by_its: dict[tuple[int, int, int], list[HostDevice]] = {}
    for (smmu, number), members in groups.items():
        if len(members) > _MOST_IN_GROUP:
            raise UsageError(
                f"emulated host: {len(members)} devices of IOMMU group {number}; valid is up to "
                f"{_MOST_IN_GROUP} of a group"
            )
        itses = {device.its for device in members} if own_its else {0}
        if len(itses) > 1:
            raise UsageError(
                f"emulated host: IOMMU group {number} has devices of {len(itses)} ITSes, the "
                "functions of a test device have one; use --doorbells witness"
            )
        by_its[smmu, itses.pop(), number] = members
    return _placed(by_its)
