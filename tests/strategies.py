"""Hypothesis strategies for hosts, guests and scenarios."""

from __future__ import annotations

from hypothesis import strategies as st

from vmm_msi.config import Choice
from vmm_msi.model import (
    DeviceId,
    Granule,
    GuestDevice,
    GuestDomain,
    HostDevice,
    HostTopology,
    Iova,
    Ipa,
    Its,
    Order,
    Pa,
    PciAddress,
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
        "coerced:revision=v3",
        "coerced:revision=v8",
        "coerced:revision=v15",
        "direct",
        "direct:profile=linux-7.2",
        "multi-its:mode=s2",
        "multi-its:mode=vits",
        "multi-its:mode=vsmmu",
        "multi-its:mode=s2,profile=linux-7.2",
        "identity",
    )
]


@st.composite
def scenarios(draw: st.DrawFn, max_devices: int = 6) -> Scenario:
    """A host of up to 3 SMMUs and 4 ITSes, and a guest with devices in all shapes."""
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
                device_id=DeviceId(address.rid),
                iommu_group=group,
                vectors=draw(st.integers(1, 8)),
            )
        )
    host = HostTopology(
        source="random",
        granule=granule,
        smmus=tuple(Smmu(i) for i in range(smmus)),
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
        order=draw(st.sampled_from(list(Order))),
        honours_rmr=draw(st.booleans()),
    )
    return Scenario(host, guest)
