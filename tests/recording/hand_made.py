"""A handwritten recording with the numbers of a real run: an NVMe drive in the emulated host."""

from __future__ import annotations

from vmm_msi.domxml.guest_domain import virt_guest
from vmm_msi.recording import RecordedDevice, RecordedVector, Recording, Releases, Slot
from vmm_msi.types import (
    DeviceId,
    Granule,
    HostDevice,
    HostTopology,
    Iova,
    Its,
    Pa,
    PciAddress,
    Smmu,
    StreamId,
)

NVME = PciAddress.parse("0000:11:00.0")
PROGRAMMED = Iova(0x8000040)
ITSES = (Its(0, Pa(0x8080000)), Its(1, Pa(0x80A0000)))


def recording(**changes):
    device = HostDevice(NVME, 0, StreamId(0x1100), (0,), DeviceId(0x1100), 1, vectors=65)
    fields = {
        "releases": Releases("0.1.0", "7.2.12", "12.8.0", "11.1.2"),
        "host": HostTopology(
            "recording", Granule.K4, (Smmu(0, Pa(0xC000000)),), ITSES, devices=(device,)
        ),
        "guest": virt_guest("guest", [NVME]),
        "devices": (recorded(),),
        "slots": (Slot(Iova(0x8000000), 0),),
    }
    return Recording(**{**fields, **changes})


def recorded(programmed=PROGRAMMED, counts=(10, 1001), strategy="identity"):
    vectors = tuple(RecordedVector(n, programmed, count) for n, count in enumerate(counts))
    return RecordedDevice(NVME, strategy, {}, vectors)
