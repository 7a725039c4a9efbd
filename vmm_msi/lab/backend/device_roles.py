"""Assign test devices of the emulated host to the devices of a scenario."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from vmm_msi.errors import LabError, UsageError
from vmm_msi.iommu.linux.raise_msi import EDU
from vmm_msi.lab.machine.shape import GRANULES, Shape
from vmm_msi.quantity import quantity
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_msi.types import HostDevice, Scenario

#: Test devices in one IOMMU group, at most.
_MOST_IN_GROUP = 2

#: Devices of one IOMMU group, by SMMU.
_TestDevices = dict[int, list[list[PciAddress]]]


def check(scenario: Scenario, *, own_its: bool) -> None:
    """Check that the emulated host can play a scenario.

    :param own_its: MSIs go to the host's only ITS.
    :raise UsageError: when it cannot; the message says what works instead.
    """
    host = scenario.host
    if host.granule not in GRANULES:
        raise UsageError(
            f"emulated host: pages of {host.granule} are not supported; valid: "
            f"{', '.join(map(str, GRANULES))}"
        )
    itses = {device.its for device in _devices(scenario)}
    if own_its and len(itses) > 1:
        raise UsageError(
            f"emulated host: it has one ITS, the scenario uses {len(itses)}; use pages of "
            "memory instead (--doorbells witness)"
        )
    for device in _devices(scenario):
        _check_device(scenario, device, own_its=own_its)


def _check_device(scenario: Scenario, device: HostDevice, *, own_its: bool) -> None:
    reason = None
    if device.smmu is None:
        reason = "is not behind an SMMU, but every test device is"
    elif not scenario.host.smmu_by_id[device.smmu].nested:
        reason = f"is behind SMMU {device.smmu}, which lacks a stage; the emulated ones have both"
    elif device.streams != 1:
        reason = f"has {device.streams} StreamIDs, a test device has one"
    elif own_its and device.vectors != 1:
        reason = (
            f"has {device.vectors} vectors, a test device has one; use vectors = 1 or "
            "--doorbells witness"
        )
    if reason is not None:
        raise UsageError(f"emulated host: {device.address} {reason}")


def shape_for(scenario: Scenario, least: Shape | None = None) -> Shape:
    """Return the smallest shape that can play a scenario and covers ``least``.

    :raise UsageError: when no shape can.
    """
    least = least or Shape(granule=scenario.host.granule)
    groups = _groups(_devices(scenario))
    singles = max(sum(len(g) == 1 for g in found) for found in groups.values())
    pairs = max(sum(len(g) == _MOST_IN_GROUP for g in found) for found in groups.values())
    smmus = max(least.smmus, len(groups))
    return Shape(
        smmus=smmus,
        devices=max(least.devices, singles * smmus),
        pairs=max(least.pairs, pairs * smmus),
        granule=scenario.host.granule,
        memory=least.memory,
        vcpus=least.vcpus,
        nvmes=least.nvmes,
    )


def assign(scenario: Scenario, devices: Sequence[Any]) -> dict[PciAddress, PciAddress]:
    """Return the test device for each of the guest's devices.

    Devices behind one SMMU are played by devices behind one SMMU, an IOMMU group by a group.

    :param devices: the agent's answer to ``devices``.
    :raise LabError: when the host has too few.
    """
    available = _test_devices(devices)
    needed = _groups(_devices(scenario))
    if len(needed) > len(available):
        raise LabError(
            f"emulated host: it has {quantity(len(available), 'SMMU')} with test devices, the "
            f"scenario uses {len(needed)}; use vmm-msi lab up --smmus {len(needed)}"
        )
    roles: dict[PciAddress, PciAddress] = {}
    for groups, free in zip(needed.values(), available.values(), strict=False):
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


def _test_devices(devices: Sequence[Any]) -> _TestDevices:
    """Return the test devices by SMMU and IOMMU group."""
    groups: dict[tuple[str, int], list[PciAddress]] = defaultdict(list)
    for device in devices:
        if (device["vendor"], device["device"]) == EDU:
            address = PciAddress.parse(device["address"])
            groups[str(device["smmu"]), int(device["group"])].append(address)
    smmus = sorted({smmu for smmu, _group in groups})
    return {
        number: [sorted(members) for (of, _), members in sorted(groups.items()) if of == smmu]
        for number, smmu in enumerate(smmus)
    }


def _devices(scenario: Scenario) -> list[HostDevice]:
    by_address = scenario.host.device_by_address
    return [by_address[device.host] for device in scenario.guest.devices]


def _groups(devices: Sequence[HostDevice]) -> dict[int, list[list[HostDevice]]]:
    """Return the devices by SMMU and IOMMU group.

    :raise UsageError: for a group that no test devices can play.
    """
    groups: dict[tuple[int, int], list[HostDevice]] = defaultdict(list)
    for device in devices:
        groups[device.smmu or 0, device.iommu_group].append(device)
    by_smmu: dict[int, list[list[HostDevice]]] = defaultdict(list)
    for (smmu, number), members in sorted(groups.items(), key=lambda item: item[0]):
        if len(members) > _MOST_IN_GROUP:
            raise UsageError(
                f"emulated host: {len(members)} devices of IOMMU group {number}; valid is up to "
                f"{_MOST_IN_GROUP} of a group"
            )
        by_smmu[smmu].append(members)
    return dict(by_smmu)
