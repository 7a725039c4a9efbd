"""Random hosts and guests for Hypothesis, and the strategies to run on them."""

from __future__ import annotations

from hypothesis import strategies as st

from vmm_msi.config import Choice
from vmm_msi.types import (
    SW_MSI_WINDOW,
    BindOrder,
    ContainerPer,
    DeviceId,
    Granule,
    GuestDevice,
    GuestDomain,
    HostDevice,
    HostTopology,
    Iova,
    Ipa,
    Its,
    MemoryRange,
    Pa,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    Scenario,
    Smmu,
    Stage1,
    StreamId,
    Vits,
)

CHOICES = [
    Choice.parse(text)
    for text in (
        "host-cookie",
        "coerced:revision=v2",
        "coerced:revision=v4",
        "coerced:revision=v8",
        "coerced:revision=v15",
        "direct",
        "direct:profile=linux-7.2",
        "multi-its:mode=s2",
        "multi-its:mode=vits",
        "multi-its:mode=vsmmu",
        "multi-its:mode=vsmmu,iommufd=each",
        "multi-its:mode=s2,iommufd=each",
        "multi-its:mode=s2,profile=linux-7.2",
        "identity",
        "placed",
        "window",
        "preset",
        "mapped-page:mode=vits",
        "mapped-page:mode=s2",
        "direct:profile=linux-sw-msi-option",
        "multi-its:mode=s2,profile=linux-sw-msi-option",
        "identity:profile=linux-vfio-msi-iova",
        "host-cookie:profile=pre-series",
        "coerced:revision=v2,profile=series-v2",
        "coerced:revision=v4,profile=series-v4",
        "coerced:revision=v8,profile=series-v7",
        "coerced:revision=v15,profile=series-v15",
        "direct:profile=series-v15",
        "multi-its:mode=s2,profile=series-v8",
        "identity:profile=series-v16",
    )
]

#: Most hosts and guests are plain, some have one of these oddities.
NESTED = [True, True, True, True, False]
RESERVED = [
    (SW_MSI_WINDOW,),
    (SW_MSI_WINDOW,),
    (ReservedRegion(0x0A00_0000, 0x10_0000, ReservedKind.SW_MSI),),
    (SW_MSI_WINDOW, ReservedRegion(0x0A09_4000, 0x1000, ReservedKind.RESERVED)),
    (SW_MSI_WINDOW, ReservedRegion(0x4000_0000, 0x1000, ReservedKind.DIRECT_RELAXABLE)),
    (ReservedRegion(0xFEE0_0000, 0x10_0000, ReservedKind.HW_MSI),),
]
MEMORY = [
    (MemoryRange(Ipa(0x4000_0000), 0x4000_0000),),
    (MemoryRange(Ipa(0x4000_0000), 0x4000_0000),),
    (MemoryRange(Ipa(0), 0x0810_0000), MemoryRange(Ipa(0x4000_0000), 0x1000_0000)),
]


@st.composite
def scenarios(draw: st.DrawFn, max_devices: int = 6) -> Scenario:
    """Draw a host of up to 3 SMMUs and 4 ITSes, and a guest with devices in all shapes."""
    granule = draw(st.sampled_from(list(Granule)))
    smmus = draw(st.integers(1, 3))
    itses = draw(st.integers(1, 4))
    count = draw(st.integers(1, max_devices))
    devices = []
    for number in range(count):
        group = draw(st.integers(1, count))
        candidates = draw(st.permutations(range(itses)))[: draw(st.integers(1, itses))]
        address = PciAddress(0, number + 1, 0, 0)
        devices.append(
            HostDevice(
                address=address,
                smmu=draw(st.integers(0, smmus - 1)),
                stream_id=StreamId(address.rid),
                its_group=tuple(candidates),
                # Two devices behind different ITSes can have one DeviceID.
                device_id=DeviceId(sum(d.its == candidates[0] for d in devices)),
                iommu_group=group,
                vectors=draw(st.integers(1, 8)),
                reserved=draw(st.sampled_from(RESERVED)),
                streams=draw(st.sampled_from([1, 1, 1, 2])),
            )
        )
    host = HostTopology(
        source="random",
        granule=granule,
        smmus=tuple(Smmu(i, nested=draw(st.sampled_from(NESTED))) for i in range(smmus)),
        itses=tuple(Its(i, Pa(0x2_0000_0000 + i * 0x100_0000)) for i in range(itses)),
        devices=tuple(devices),
    )
    bases = [0x0808_0000, 0x080A_0000, 0x0A08_0000, 0x0A0A_0000, 0x0A09_1000]
    vits = tuple(Vits(i, Ipa(base)) for i, base in enumerate(bases))
    shared = draw(st.sampled_from(list(Granule)))
    stage1 = [Stage1("shared", shared)]
    guest_devices = []
    doorbells: dict[tuple[str, int], int] = {}
    for device in devices:
        own = draw(st.booleans())
        name = f"s1-{device.address}" if own else "shared"
        if own:
            stage1.append(Stage1(name, draw(st.sampled_from(list(Granule)))))
        size = next(s.granule for s in stage1 if s.id == name)
        giova = draw(st.sampled_from([0xFFFF_0000, 0xFFFE_0000, 0xFFFD_0000, 0xFFFF_F000])) & -size
        used = doorbells.setdefault((name, giova), draw(st.integers(0, len(vits) - 1)))
        guest_devices.append(GuestDevice(device.address, name, used, Iova(giova)))
    guest = GuestDomain(
        name="random",
        vits=vits,
        stage1=tuple(stage1),
        devices=tuple(guest_devices),
        order=draw(st.sampled_from(list(BindOrder))),
        honours_rmr=draw(st.booleans()),
        memory=draw(st.sampled_from(MEMORY)),
        containers=draw(st.sampled_from(list(ContainerPer))),
    )
    return Scenario(host, guest)
