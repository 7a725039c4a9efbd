"""A mapping that failed is explained by its errno and by what the address is."""

from __future__ import annotations

import pytest

from vmm_msi.explain.explainer import explain
from vmm_msi.explain.log_context import LogContext
from vmm_msi.types import (
    Granule,
    GuestDevice,
    GuestDomain,
    HostDevice,
    HostTopology,
    Ipa,
    Its,
    MemoryRange,
    Pa,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    Smmu,
    Stage1,
    StreamId,
    Vits,
)
from vmm_msi.types.address import DeviceId, Iova

MAP = "qemu-system-aarch64: vfio_container_dma_map(0x5e04, {}, {}, 0x771a) = {}"
OLD = "qemu-system-x86_64: vfio_dma_map(0x5e04, {}, {}, 0x771a) = {}"
REALIZE = (
    "qemu-system-aarch64: -device vfio-pci,host=0000:01:00.0: vfio 0000:01:00.0: failed to setup "
    "container for group 28: memory listener initialization failed: Region {}: "
    "vfio_container_dma_map(0x5631, {}, {}, 0x7fb2) = {}"
)
EINVAL, EFAULT, ENOMEM = (
    "-22 (Invalid argument)",
    "-14 (Bad address)",
    "-12 (Cannot allocate memory)",
)
RAM, BAR, EITHER = "guest RAM", "a BAR", "memory of the guest"
RESERVED = ("guest-ram-reserved", "guest-ram-in-msi-window")


def explained(line, context=None):
    report = explain(line, context or LogContext())
    assert report.unrecognised == 0
    (explained_line,) = report.lines
    assert explained_line.explanation.id == "qemu-map-failed"
    return explained_line.explanation


@pytest.mark.parametrize(
    ("line", "what", "findings"),
    [
        (MAP.format("0x380010000000", "0x2000000", EINVAL), BAR, ()),
        (MAP.format("0x8000000000", "0x4000", EFAULT), BAR, ()),
        (MAP.format("0x10000000", "0x4000", EINVAL), BAR, ()),
        (MAP.format("0x40000000", "0x100000000", EINVAL), RAM, RESERVED),
        (MAP.format("0x40000000", "0x100000000", ENOMEM), RAM, ("memlock",)),
        (MAP.format("0x40000000", "0x100000000", "-12"), RAM, ("memlock",)),
        (REALIZE.format("mach-virt.ram", "0x40000000", "0x100000000", EINVAL), RAM, RESERVED),
        (REALIZE.format("mach-virt.ram", "0x40000000", "0x100000000", ENOMEM), RAM, ("memlock",)),
        (REALIZE.format("ram-node0", "0x40000000", "0x100000000", EFAULT), RAM, ()),
        (REALIZE.format("0000:01:00.0 BAR 0 mmaps[0]", "0x10000000", "0x1000", EINVAL), BAR, ()),
        (REALIZE.format("0000:01:00.0 BAR 2", "0x40000000", "0x1000", EFAULT), BAR, ()),
        (REALIZE.format("/objects/mem0", "0x8000000000", "0x40000000", EINVAL), RAM, RESERVED),
        (OLD.format("0x100000", "0xbff00000", "-22 (Invalid argument)"), RAM, RESERVED),
        (OLD.format("0xfee00000", "0x1000", "-14 (Bad address)"), BAR, ()),
        ("vfio: VFIO_MAP_DMA: -22", EITHER, RESERVED),
        ("qemu-kvm: VFIO_MAP_DMA: -12", EITHER, ("memlock",)),
        ("qemu-kvm: VFIO_MAP_DMA failed: Invalid argument", EITHER, RESERVED),
        ("qemu-kvm: VFIO_MAP_DMA failed: Cannot allocate memory", EITHER, ("memlock",)),
        ("qemu-kvm: VFIO_MAP_DMA failed: Bad address", BAR, ()),
        ("qemu-kvm: VFIO_MAP_DMA failed: No space left on device", EITHER, ()),
        ("qemu-kvm: VFIO_MAP_DMA failed: File exists", EITHER, ()),
        ("warning: IOMMU_IOAS_MAP failed: Bad address, PCI BAR?", BAR, ()),
        ("warning: IOMMU_IOAS_MAP_FILE failed: Bad address, PCI BAR?", BAR, ()),
        ("IOMMU_IOAS_MAP failed: Cannot allocate memory", EITHER, ("memlock",)),
        ("IOMMU_IOAS_MAP failed: Invalid argument", EITHER, RESERVED),
        (
            (
                "qemu-system-x86_64: Container 0x55d can't map guest IOVA region "
                "0x380000000000..0x3807ffffffff"
            ),
            BAR,
            (),
        ),
    ],
)
def test_the_errno_and_the_address_decide(line, what, findings):
    explanation = explained(line)
    assert explanation.what.startswith(what)
    assert explanation.findings == findings
    assert (explanation.missing == "") == (what == BAR)
    fixes = " ".join(remedy.what for remedy in explanation.remedies)
    assert ("hard_limit" in fixes) == (findings == ("memlock",))
    assert ("nothing has to be fixed" in fixes) == (what == BAR)


def test_the_address_and_the_size_are_shown():
    explanation = explained(REALIZE.format("mach-virt.ram", "0x40000000", "0x100000000", EINVAL))
    assert (explanation.ipa, explanation.ipa_is) == (0x4000_0000, "guest RAM, 0x100000000 bytes")
    assert "0xfee00000-0xfeefffff is one on an x86 host" in explanation.why
    assert "on an Arm host" not in explanation.why


@pytest.mark.parametrize(
    "line",
    [
        "qemu-kvm: Container 0x55d can't map guest IOVA region 0x380000000000..0x380000003fff",
        "failed to map 0x380000000000-0x380000004000 into iommufd IOAS: EFAULT: Bad address",
    ],
)
def test_the_size_of_a_range_with_and_without_its_end(line):
    (explained_line,) = explain(line, LogContext()).lines
    assert explained_line.explanation.ipa_is == "a BAR, 0x4000 bytes"


def test_ram_over_the_msi_window_of_an_arm_host():
    explanation = explained(REALIZE.format("ram-node0", "0x0", "0x40000000", EINVAL))
    assert "0x8000000-0x80fffff is one on an Arm host" in explanation.why
    assert "0xfee00000" not in explanation.why


@pytest.mark.parametrize(
    ("address", "reason"),
    [("0x8000000", "in a reserved region"), ("0x380000000000", "beyond the IOMMU's width")],
)
def test_a_bar_below_4_gib_is_not_beyond_the_width(address, reason):
    explanation = explained(REALIZE.format("0000:01:00.0 BAR 0", address, "0x1000", EINVAL))
    assert reason in explanation.why
    assert ("width" in explanation.why) == ("width" in reason)


DEVICE = PciAddress(0, 1, 0, 0)
DIRECT = ReservedRegion(0x9000_0000, 0x10_0000, ReservedKind.DIRECT)


def context(ram):
    host = HostTopology(
        "x",
        Granule.K4,
        (Smmu(0),),
        (Its(0, Pa(0x808_0000)),),
        (HostDevice(DEVICE, 0, StreamId(0x100), (0,), DeviceId(0x100), 1, reserved=(DIRECT,)),),
    )
    guest = GuestDomain(
        "g",
        (Vits(0, Pa(0x808_0000)),),
        (Stage1("s"),),
        (GuestDevice(DEVICE, "s", 0, Iova(0xFFFF_F000)),),
        memory=(MemoryRange(Ipa(0x4000_0000), ram),),
    )
    return LogContext(host, guest)


def test_the_region_that_guest_ram_covers_is_named_if_host_and_guest_are_known():
    line = MAP.format("0x40000000", "0x80000000", EINVAL)
    explanation = explained(line, context(0x8000_0000))
    assert f"covers a reserved region of the device: {DIRECT}" in explanation.why


def test_the_region_is_named_for_the_device_in_the_line_if_only_the_host_is_known():
    line = REALIZE.format("mach-virt.ram", "0x40000000", "0x80000000", EINVAL)
    explanation = explained(line, LogContext(context(0x1000).host))
    assert f"covers a reserved region of the device: {DIRECT}" in explanation.why


@pytest.mark.parametrize(("ram", "what"), [(0x8000_0000, BAR), (0x80_0000_0000, RAM)])
def test_ram_of_a_known_guest_ends_where_its_definition_says(ram, what):
    line = MAP.format("0x4000000000", "0x4000", EINVAL)
    assert explained(line, context(ram)).what.startswith(what)
