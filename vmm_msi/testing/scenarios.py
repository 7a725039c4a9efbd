"""Sample scenarios: hosts with a guest each, in the shapes that strategies differ on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import starmap
from typing import TYPE_CHECKING, Literal

from vmm_msi.types import (
    SW_MSI_WINDOW,
    BindOrder,
    DeviceId,
    Granule,
    GuestDevice,
    GuestDomain,
    HostDevice,
    HostTopology,
    Iova,
    Ipa,
    Its,
    Pa,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    Scenario,
    Smmu,
    Stage1,
    Stage1Mode,
    StreamId,
    Vits,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    #: How the two devices of :func:`pair` use stage 1: one for both; one each, with different
    #: gIOVAs; one each, with the same gIOVA.
    Stage1Use = Literal["shared", "own", "own-same"]

#: The gIOVAs of the doorbells of the first and the second device.
GIOVAS = (Iova(0xFFFF_F000), Iova(0xFFFF_E000))
#: Where the virtual ITSes of a guest are; both doorbells lie in the MSI window.
VITS_BASES = (Ipa(0x0808_0000), Ipa(0x080A_0000))
#: Outside of the MSI window.
OUTSIDE = (Ipa(0x0A08_0000), Ipa(0x0A0A_0000))
#: The first of them has its doorbell at the first slot of the MSI window.
AT_SLOT = (Ipa(0x07FF_0000), Ipa(0x080A_0000))


@dataclass(frozen=True, slots=True)
class DeviceShape:
    """One device of a scenario, of the host and of the guest.

    :param its: id of its ITS; the ITSes of a host have the ids from 0.
    :param smmu: id of its SMMU; None if no SMMU is in front of it.
    :param group: number of its IOMMU group; None for a group of its own.
    :param stage1: id of the guest's stage 1 that it uses.
    :param vits: id of its virtual ITS.
    """

    its: int = 0
    smmu: int | None = 0
    group: int | None = None
    stage1: str = "s1a"
    vits: int = 0
    giova: Iova = GIOVAS[0]
    vectors: int = 2
    reserved: tuple[ReservedRegion, ...] = (SW_MSI_WINDOW,)
    vfio: bool = False


def scenario_of(
    devices: Sequence[DeviceShape],
    *,
    order: BindOrder = BindOrder.INTERLEAVED,
    honours_rmr: bool = True,
    granule: Granule = Granule.K4,
    vits_bases: Sequence[Ipa] = VITS_BASES,
    nested: bool = True,
    stage1_mode: Stage1Mode = Stage1Mode.TRANSLATE,
) -> Scenario:
    """Return a host with the devices, and a guest that has all of them.

    The devices are 0000:01:00.0, 0000:02:00.0 and so on.

    :param granule: page size of the host and of every stage 1.
    :param vits_bases: where the virtual ITSes are, by id.
    :param nested: the SMMUs have both stages.
    """
    host = HostTopology(
        source="sample",
        granule=granule,
        smmus=tuple(
            Smmu(number, nested=nested)
            for number in sorted({d.smmu for d in devices if d.smmu is not None})
        ),
        itses=tuple(
            Its(number, Pa(0x2_0000_0000 + number * 0x100_0000))
            for number in sorted({device.its for device in devices})
        ),
        devices=tuple(starmap(_host_device, enumerate(devices))),
    )
    guest = GuestDomain(
        name="guest",
        vits=tuple(
            Vits(number, vits_bases[number]) for number in sorted({d.vits for d in devices})
        ),
        stage1=tuple(
            Stage1(name, granule, stage1_mode) for name in sorted({d.stage1 for d in devices})
        ),
        devices=tuple(
            GuestDevice(
                _address(number), device.stage1, device.vits, device.giova, vfio=device.vfio
            )
            for number, device in enumerate(devices)
        ),
        order=order,
        honours_rmr=honours_rmr,
    )
    return Scenario(host, guest)


def _address(number: int) -> PciAddress:
    return PciAddress(0, number + 1, 0, 0)


def _host_device(number: int, device: DeviceShape) -> HostDevice:
    address = _address(number)
    return HostDevice(
        address=address,
        smmu=device.smmu,
        stream_id=StreamId(address.rid),
        its_group=(device.its,),
        device_id=DeviceId(address.rid),
        iommu_group=number + 1 if device.group is None else device.group,
        vectors=device.vectors,
        reserved=device.reserved,
    )


def pair(
    stage1: Stage1Use = "own",
    *,
    itses: int = 1,
    vitses: int = 1,
    order: BindOrder = BindOrder.INTERLEAVED,
    honours_rmr: bool = True,
    vits_bases: Sequence[Ipa] = VITS_BASES,
) -> Scenario:
    """Return two devices behind one SMMU, a row of the truth table of docs/strategies.md.

    :param itses: ITSes of the host: 1, or 2 with a device on each.
    :param vitses: virtual ITSes of the guest, likewise.
    """
    first = DeviceShape()
    second = DeviceShape(
        its=itses - 1,
        vits=vitses - 1,
        stage1="s1a" if stage1 == "shared" else "s1b",
        giova=GIOVAS[1] if stage1 == "own" else GIOVAS[0],
    )
    return scenario_of((first, second), order=order, honours_rmr=honours_rmr, vits_bases=vits_bases)


#: The rows of the truth table: ITSes, stage 1, virtual ITSes, order.
TRUTH_TABLE: tuple[tuple[int, Stage1Use, int, BindOrder], ...] = (
    (1, "shared", 1, BindOrder.INTERLEAVED),
    (1, "own", 1, BindOrder.INTERLEAVED),
    (1, "own", 1, BindOrder.BATCHED),
    (1, "own-same", 1, BindOrder.INTERLEAVED),
    (2, "shared", 1, BindOrder.INTERLEAVED),
    (2, "own", 1, BindOrder.INTERLEAVED),
    (2, "own-same", 1, BindOrder.INTERLEAVED),
    (2, "own", 1, BindOrder.BATCHED),
    (2, "own", 2, BindOrder.INTERLEAVED),
    (2, "own", 2, BindOrder.BATCHED),
)


def on_any_backend() -> Mapping[str, Scenario]:
    """Return the scenarios that the simulator and the emulated host run, by name."""
    device = DeviceShape()
    other = replace(device, stage1="s1b", giova=GIOVAS[1])
    rows = {
        f"{itses}-its-{stage1}-{vitses}-vits-{order}": pair(
            stage1, itses=itses, vitses=vitses, order=order
        )
        for itses, stage1, vitses, order in TRUTH_TABLE
    }
    return rows | {
        "one-device": scenario_of([device]),
        "many-vectors": scenario_of([replace(device, vectors=32), other]),
        "two-smmus": scenario_of([device, other, replace(other, smmu=1, its=1, stage1="s1c")]),
        "one-group": scenario_of([replace(device, group=7), replace(device, group=7)]),
        "rmr-ignored": pair("own", itses=2, honours_rmr=False),
        "doorbells-outside-window": pair("own", itses=2, vitses=2, vits_bases=OUTSIDE),
        "doorbell-at-slot": pair("own", vits_bases=AT_SLOT),
    }


def sample_scenarios() -> Mapping[str, Scenario]:
    """Return the scenarios of the conformance suite in the simulator, by name.

    Some have devices that no strategy can serve.
    """
    device = DeviceShape()
    other = replace(device, stage1="s1b", giova=GIOVAS[1])
    moved = ReservedRegion(0x0A00_0000, 0x10_0000, ReservedKind.SW_MSI)
    hw_msi = ReservedRegion(0xFEE0_0000, 0x10_0000, ReservedKind.HW_MSI)
    aligned = replace(device, giova=Iova(0xFFFF_0000))
    return {
        **on_any_backend(),
        "four-its": scenario_of(
            [
                replace(device, its=number, stage1=f"s1-{number}", vits=number % 2)
                for number in range(4)
            ]
        ),
        "64k-pages": scenario_of([aligned, replace(aligned, its=1)], granule=Granule.K64),
        "group-of-two-its": scenario_of([replace(device, group=7), replace(other, group=7, its=1)]),
        "window-moved": scenario_of([replace(device, reserved=(moved,)), other]),
        "hw-msi": scenario_of([replace(device, reserved=(hw_msi,)), other]),
        "no-smmu": scenario_of([replace(device, smmu=None), other]),
        "smmu-not-nested": scenario_of([device, other], nested=False),
        "stage1-bypassed": scenario_of([device, other], stage1_mode=Stage1Mode.BYPASS),
        "vfio-in-guest": scenario_of([replace(device, vfio=True), other]),
    }
