"""The rules of each simulated kernel: same cause, same errno."""

from __future__ import annotations

import errno
from dataclasses import replace
from functools import partial

import pytest

from vmm_msi.errors import BackendError, InputError, UsageError, errno_name
from vmm_msi.iommu.backend import Capability, MsiAllocator
from vmm_msi.iommu.profiles import PROFILES, default_profile, profile_named
from vmm_msi.iommu.revisions import REVISIONS
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.types import (
    SW_MSI_WINDOW,
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
    Outcome,
    Pa,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    Smmu,
    Stage1,
    Stage1Mode,
    StreamId,
    Vits,
)

A, B, C = (PciAddress(0, bus, 0, 0) for bus in (1, 2, 3))
GDB = Ipa(0x0A09_0000)
SERIES = [p.name for p in PROFILES if not p.iommufd]


def device(address, *, smmu=0, its=0, group=None, reserved=(SW_MSI_WINDOW,)):
    number = address.bus
    return HostDevice(
        address, smmu, StreamId(number), (its,), DeviceId(number), group or number, 2, reserved
    )


def host(*devices, granule=Granule.K4, nested=True):
    return HostTopology(
        "test",
        granule,
        tuple(Smmu(i, nested=nested) for i in range(2)),
        tuple(Its(i, Pa(0x2_0000_0000 + i * 0x100_0000)) for i in range(2)),
        devices,
    )


def guest(
    *addresses,
    memory=(MemoryRange(Ipa(0x4000_0000), 0x1000_0000),),
    stage1=None,
    containers=ContainerPer.DEVICE,
):
    names = stage1 or {a: f"s1-{a.bus}" for a in addresses}
    return GuestDomain(
        "test",
        (Vits(0, Ipa(0x0A08_0000)),),
        tuple(Stage1(name) for name in dict.fromkeys(names.values())),
        tuple(GuestDevice(a, names[a], 0, Iova(0xFFFF_0000)) for a in addresses),
        memory=memory,
        containers=containers,
    )


def sim(profile, *devices, **more):
    options = {key: more.pop(key) for key in ("granule", "nested") if key in more}
    addresses = [d.address for d in devices]
    return SimBackend(host(*devices, **options), guest(*addresses, **more), profile_named(profile))


def code(call, *args, **kwargs):
    with pytest.raises(BackendError) as refusal:
        call(*args, **kwargs)
    return errno_name(refusal.value.errno)


def test_a_stage_2_needs_an_smmu_with_both_stages():
    assert code(sim("linux-7.2", device(A), nested=False).alloc_s2, 0) == "EOPNOTSUPP"
    backend = sim("series-v15", device(A), nested=False)
    assert code(backend.attach, A, backend.alloc_s2(0)) == "EINVAL"


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("profile", SERIES)
def test_the_series_is_for_an_smmuv3(profile, nested):
    topology = host(device(A))
    topology = replace(topology, smmus=(Smmu(0, nested=nested, version=2),))
    backend = SimBackend(topology, guest(A), profile_named(profile))
    s2 = backend.alloc_s2(0)
    assert code(backend.attach, A, s2) == "ENODEV"
    backend.free_s2(s2)


def test_one_s2_per_physical_smmu():
    backend = sim("linux-7.2", device(A, smmu=1), device(B, smmu=0))
    s2 = backend.alloc_s2(0)
    assert code(backend.attach, A, s2) == "EINVAL"
    backend.free_s2(s2)
    backend.attach(A, backend.alloc_s2(1))


def test_vfio_makes_an_iommu_domain_for_another_smmu():
    devices = device(A, smmu=1), device(B, smmu=0)
    backend = sim("series-v2", *devices, containers=ContainerPer.GUEST, stage1={A: "s1", B: "s1"})
    s2 = backend.alloc_s2(0)
    assert backend.attach(A, s2) != backend.attach(B, s2)
    assert (backend.costs().s2_domains, backend.costs().containers) == (2, 1)


def test_devices_behind_two_smmus_share_a_container():
    def two(names):
        devices = device(A), device(B, smmu=1)
        backend = sim("series-v8", *devices, containers=ContainerPer.GUEST, stage1=names)
        return backend, backend.alloc_s2(0), backend.alloc_s2(1)

    backend, first, second = two({A: "s1", B: "s1"})
    assert backend.attach(A, first) != backend.attach(B, second)
    backend.bind_guest_msi(A, Iova(0xFFFF_0000), GDB, 4096)
    costs = backend.costs()
    assert (costs.s2_domains, costs.containers, costs.bindings) == (2, 1, 2)
    backend, first, second = two({A: "s1-a", B: "s1-b"})
    backend.attach(A, first)
    assert code(backend.attach, B, second) == "EINVAL"


def test_a_group_behind_two_smmus_is_refused():
    backend = sim("series-v8", device(A, group=7), device(B, smmu=1, group=7))
    assert code(backend.attach, A, backend.alloc_s2(0)) == "ENXIO"


def test_two_stage_2_tables_on_one_smmu_are_in_two_containers():
    backend = sim(
        "series-v2", device(A), device(B), containers=ContainerPer.GUEST, stage1={A: "s1", B: "s1"}
    )
    assert backend.attach(A, backend.alloc_s2(0)) != backend.attach(B, backend.alloc_s2(0))
    assert (backend.costs().s2_domains, backend.costs().containers) == (2, 2)


@pytest.mark.parametrize("profile", ["linux-7.2", "series-v8"])
@pytest.mark.parametrize("same_s2", [True, False])
def test_a_group_has_one_translation(profile, same_s2):
    backend = sim(profile, device(A, group=7), device(B, group=7))
    first = backend.alloc_s2(0)
    backend.attach(A, first)
    second = first if same_s2 else backend.alloc_s2(0)
    assert code(backend.attach, B, second) == "EINVAL"


@pytest.mark.parametrize("profile", [p.name for p in PROFILES])
def test_devices_of_a_group_share_a_translation(profile):
    devices = [device(A, group=7), device(B, group=7)]
    backend = sim(profile, *devices, stage1={A: "s1", B: "s1"})
    s2 = backend.alloc_s2(0)
    backend.attach(A, s2)
    backend.attach(B, s2)
    assert code(backend.attach, B, s2) == "EBUSY"
    assert code(backend.free_s2, s2) == "EBUSY"
    backend.detach(A)
    backend.detach(B)
    backend.free_s2(s2)


def test_iommufd_reserves_the_window_at_attach():
    backend = sim("linux-7.2", device(A))
    s2 = backend.alloc_s2(0)
    backend.map_doorbell(s2, Ipa(0x0809_0000), 0)
    assert code(backend.attach, A, s2) == "EADDRINUSE"
    backend.unmap_doorbell(s2, Ipa(0x0809_0000))
    backend.attach(A, s2)
    assert code(backend.map_doorbell, s2, Ipa(0x0809_0000), 0) == "EINVAL"
    backend.map_doorbell(s2, GDB, 0)
    assert code(backend.map_doorbell, s2, GDB, 1) == "EEXIST"
    backend.detach(A)
    backend.map_doorbell(s2, Ipa(0x0809_0000), 0)


def test_iommufd_refuses_ram_in_the_window():
    backend = sim("linux-7.2", device(A), memory=(MemoryRange(Ipa(0), 0x1000_0000),))
    assert code(backend.attach, A, backend.alloc_s2(0)) == "EADDRINUSE"


@pytest.mark.parametrize("profile", SERIES)
def test_vfio_refuses_ram_in_a_reserved_region_since_linux_5_4(profile):
    relaxable = ReservedRegion(0x1000, 0x1000, ReservedKind.DIRECT_RELAXABLE)
    memory = (MemoryRange(Ipa(0), 0x1000_0000),)
    backend = sim(profile, device(A, reserved=(relaxable,)), device(B), memory=memory)
    backend.attach(A, backend.alloc_s2(0))
    s2 = backend.alloc_s2(0)
    if profile in {"series-v15", "series-v16"}:
        assert code(backend.attach, B, s2) == "EINVAL"
    else:
        backend.attach(B, s2)


@pytest.mark.parametrize("profile", SERIES)
def test_the_series_does_not_reserve_the_window_for_the_kernel(profile):
    backend = sim(profile, device(A))
    asked = backend.alloc_s2(0, allocator=MsiAllocator.CALLER)
    assert code(backend.map_doorbell, asked, Ipa(0x0809_0000), 0) == "ENOENT"
    s2 = backend.attach(A, asked)
    backend.map_doorbell(s2, Ipa(0x0809_0000), 0)
    assert code(backend.map_doorbell, s2, Ipa(0x0809_0000), 1) == "EEXIST"


@pytest.mark.parametrize("profile", ["series-v15", "linux-7.2"])
def test_an_unaligned_doorbell_is_refused(profile):
    backend = sim(profile, device(A), granule=Granule.K64)
    s2 = backend.attach(A, backend.alloc_s2(0))
    assert code(backend.map_doorbell, s2, GDB.offset(0x1000), 0) == "EINVAL"


@pytest.mark.parametrize("containers", ContainerPer)
@pytest.mark.parametrize("profile", SERIES)
def test_devices_of_two_itses_get_an_iommu_domain_each_from_revision_7_on(profile, containers):
    """One IOMMU domain that refuses the device does not make VFIO refuse it: VFIO makes another."""
    one = {A: "s1", B: "s1"}
    backend = sim(profile, device(A), device(B, its=1), stage1=one, containers=containers)
    s2 = backend.alloc_s2(0)
    backend.attach(A, s2)
    backend.attach(B, s2)
    checked = profile in {"series-v7", "series-v8", "series-v15"}
    separate = containers is ContainerPer.DEVICE
    assert backend.costs().s2_domains == 1 + (separate or checked)
    assert backend.costs().containers == 1 + separate
    backend.detach(B)
    assert backend.costs().s2_domains == 1


@pytest.mark.parametrize("profile", ["series-v7", "series-v8", "series-v15"])
def test_a_group_with_devices_of_two_itses_is_refused(profile):
    backend = sim(profile, device(A, group=7), device(B, group=7, its=1))
    assert code(backend.attach, A, backend.alloc_s2(0)) == "EINVAL"


def test_one_container_has_one_stage_1():
    """From revision 8 on the second one is refused, before it replaces the first."""
    for profile in ("series-v8", "series-v16"):
        backend = sim(profile, device(A), device(B), containers=ContainerPer.GUEST)
        s2 = backend.alloc_s2(0)
        backend.attach(A, s2)
        assert code(backend.attach, B, s2) == "EINVAL"
    giovas = {A: Iova(0xFFFF_0000), B: Iova(0xFFFE_0000)}
    pair = guest(A, B)
    pair = replace(
        pair,
        containers=ContainerPer.GUEST,
        devices=tuple(replace(d, giova=giovas[d.host]) for d in pair.devices),
    )
    backend = SimBackend(host(device(A), device(B)), pair, profile_named("series-v2"))
    s2 = backend.alloc_s2(0, allocator=MsiAllocator.V2)
    for address in (A, B):
        backend.attach(address, s2)
        backend.bind_guest_msi(address, giovas[address], GDB, 4096)
        backend.prepare_msi(address)
        if address is A:
            assert backend.deliver(A).outcome is Outcome.DELIVERED
    assert backend.deliver(A).outcome is Outcome.S1_FAULT


def test_a_bypass_clears_the_stage_1_of_a_container():
    """The last device has a table, so it gets the container's; the bypass before it cleared A's."""
    three = guest(A, B, C, containers=ContainerPer.GUEST)
    bypass = Stage1("s1-2", config=Stage1Mode.BYPASS)
    three = replace(three, stage1=(three.stage1[0], bypass, three.stage1[2]))
    backend = SimBackend(host(device(A), device(B), device(C)), three, profile_named("series-v8"))
    s2 = backend.alloc_s2(0)
    backend.attach(A, s2)
    backend.bind_guest_msi(A, Iova(0xFFFF_0000), GDB, 4096)
    backend.prepare_msi(A)
    assert code(backend.attach, C, s2) == "EINVAL"
    backend.attach(B, s2)
    assert backend.deliver(A).outcome is Outcome.S2_FAULT
    backend.attach(C, s2)
    assert backend.deliver(A).outcome is Outcome.DELIVERED


HW_MSI = ReservedRegion(0x0_FEE0_0000, 0x10000, ReservedKind.HW_MSI)


@pytest.mark.parametrize("profile", SERIES)
def test_a_hw_msi_region_is_refused_from_revision_8_on(profile):
    backend = sim(profile, device(A, reserved=(HW_MSI,)))
    s2 = backend.alloc_s2(0)
    if profile in {"series-v8", "series-v15", "series-v16"}:
        assert code(backend.attach, A, s2) == "EINVAL"
    else:
        backend.attach(A, s2)


def test_iommufd_keeps_the_doorbells_address_without_a_window():
    backend = sim("linux-7.2", device(A, reserved=(HW_MSI,)))
    backend.attach(A, backend.alloc_s2(0))
    assert backend.prepare_msi(A) == 0x2_0001_0040
    assert backend.deliver(A).outcome is Outcome.S1_FAULT


def test_guest_bindings_need_the_interface():
    backend = sim("linux-7.2", device(A))
    backend.attach(A, backend.alloc_s2(0))
    for address in (A, B):
        assert code(backend.bind_guest_msi, address, Iova(0xFFFF_0000), GDB, 4096) == "ENOTTY"
        assert code(backend.unbind_guest_msi, address, Iova(0xFFFF_0000)) == "ENOTTY"
    backend = sim("linux-7.2-bind", device(A))
    assert code(backend.bind_guest_msi, A, Iova(0xFFFF_0000), GDB, 4096) == "EINVAL"


IOMMUFD = [p.name for p in PROFILES if p.iommufd]


def errors(call, *args):
    """Return the errno that the caller sees, and the one in the kernel, by name."""
    with pytest.raises(BackendError) as refusal:
        call(*args)
    inside = refusal.value.inside
    return errno_name(refusal.value.errno), inside and errno_name(inside)


@pytest.mark.parametrize("profile", IOMMUFD)
def test_enabling_the_msis_of_a_device_that_is_not_attached(profile):
    """iommu_dma_prepare_msi: EOPNOTSUPP of a blocked group; msi_handle_pci_fail: ENOSPC."""
    backend = sim(profile, device(A))
    for call in (partial(backend.prepare_msi, A), partial(backend.program_msi, A, Iova(0xFFFF_0))):
        assert errors(call) == ("ENOSPC", "EOPNOTSUPP")
    s2 = backend.alloc_s2(0)
    backend.attach(A, s2)
    backend.prepare_msi(A)
    backend.detach(A)
    assert errors(backend.prepare_msi, A) == ("ENOSPC", "EOPNOTSUPP")


@pytest.mark.parametrize("profile", IOMMUFD)
def test_a_device_of_an_attached_group_has_its_translation(profile):
    """``arm_smmu_attach_dev`` is called for each device of the group."""
    backend = sim(profile, device(A, group=7), device(B, group=7), stage1={A: "s1", B: "s1"})
    backend.advertise_rmr(SW_MSI_WINDOW)
    backend.attach(A, backend.alloc_s2(0))
    backend.prepare_msi(B)
    assert backend.deliver(B).outcome is Outcome.DELIVERED
    backend.detach(A)
    assert errors(backend.prepare_msi, B) == ("ENOSPC", "EOPNOTSUPP")


@pytest.mark.parametrize("profile", IOMMUFD)
def test_iommufd_refuses_a_device_whose_msis_bypass_the_smmu(profile):
    """iopt_table_enforce_dev_resv_regions: a HW MSI region beside the window of Arm's SMMU."""
    backend = sim(profile, device(A, reserved=(SW_MSI_WINDOW, HW_MSI)))
    s2 = backend.alloc_s2(0)
    before = backend.snapshot()
    assert code(backend.attach, A, s2) == "EINVAL"
    assert backend.snapshot() == before
    memory = (MemoryRange(Ipa(HW_MSI.base), 0x10000),)
    backend = sim(profile, device(A, reserved=(SW_MSI_WINDOW, HW_MSI)), memory=memory)
    assert code(backend.attach, A, backend.alloc_s2(0)) == "EADDRINUSE"


def test_the_65th_doorbell_is_no_interrupt_for_the_caller():
    """iommufd_sw_msi_get_map: EOVERFLOW, which does not leave the kernel."""
    addresses = [PciAddress(0, bus, 0, 0) for bus in range(1, 66)]
    devices = [replace(device(a), its_group=(i,)) for i, a in enumerate(addresses)]
    itses = tuple(Its(i, Pa(0x2_0000_0000 + i * 0x100_0000)) for i in range(65))
    topology = replace(host(*devices), itses=itses)
    backend = SimBackend(topology, guest(*addresses), profile_named("linux-7.2"))
    s2 = backend.alloc_s2(0)
    for address in addresses:
        backend.attach(address, s2)
    for address in addresses[:64]:
        backend.prepare_msi(address)
    assert errors(backend.prepare_msi, addresses[64]) == ("ENOSPC", "EOVERFLOW")
    assert errors(backend.program_msi, addresses[64], Iova(0xFFFF_0000)) == ("ENOSPC", "EOVERFLOW")


DIRECT = ReservedRegion(0x8800_0000, 0x1000, ReservedKind.DIRECT)


@pytest.mark.parametrize("profile", IOMMUFD)
@pytest.mark.parametrize(
    ("wrong", "its", "refusal"),
    [
        ({"reserved": (SW_MSI_WINDOW, DIRECT)}, {}, "EINVAL"),
        ({"smmu": None}, {}, "EINVAL"),
        ({}, {"pre_its": Pa(0x5800_0000)}, "EPERM"),
        ({"its_group": (7,)}, {}, "EPERM"),
        ({"its_group": ()}, {}, "EPERM"),
    ],
)
def test_a_device_that_cannot_be_bound_is_refused_with_its_group(profile, wrong, its, refusal):
    """iommufd_device_bind, __iommu_device_set_domain of the blocking domain."""
    devices = [device(A), device(B, its=1, group=7), device(C, its=1, group=7)]
    devices[1] = replace(devices[1], **wrong)
    topology = host(*devices)
    topology = replace(topology, itses=(topology.itses[0], replace(topology.itses[1], **its)))
    backend = SimBackend(topology, guest(A, B, C), profile_named(profile))
    s2 = backend.alloc_s2(0)
    backend.attach(A, s2)
    backend.prepare_msi(A)
    before = backend.snapshot()
    assert errors(backend.attach, B, s2) == (refusal, None)
    if "smmu" not in wrong:
        assert errors(backend.attach, C, s2) == (refusal, None)
    assert backend.snapshot() == before
    alone = SimBackend(topology, guest(B), profile_named(profile))
    if "smmu" not in wrong:
        assert errors(alone.alloc_s2, 0) == (refusal, None)


@pytest.mark.parametrize("profile", ["pre-series", "series-v8", "series-v16"])
def test_before_iommufd_an_its_without_isolated_msis_refuses_every_device(profile):
    """vfio_iommu_type1_attach_group, irq_domain_check_msi_remap: B's ITS isolates MSIs."""
    topology = host(device(A), device(B, its=1))
    pre_its = replace(topology.itses[0], pre_its=Pa(0x5800_0000))
    topology = replace(topology, itses=(pre_its, *topology.itses[1:]))
    backend = SimBackend(topology, guest(A, B), profile_named(profile))
    s2 = backend.alloc_s2(0)
    assert errors(backend.attach, A, s2) == ("EPERM", None)
    assert errors(backend.attach, B, s2) == ("EPERM", None)


def test_each_device_behind_a_pre_its_has_its_own_doorbell():
    """its_irq_get_msi_base_pre_its; VFIO takes no such device, so none is delivered to."""
    pre_its = Its(0, Pa(0x2_0000_0000), pre_its=Pa(0x5800_0000))
    assert pre_its.doorbell_of(DeviceId(1)) == 0x5800_0004
    assert pre_its.doorbell_of(DeviceId(0x400)) == 0x5800_1000


def test_lpis_are_used_up_by_tables_and_not_by_messages():
    """its_msi_prepare: 28 functions with 2048 MSI-X entries have all LPIs of a host."""
    addresses = [PciAddress(0, bus, 0, 0) for bus in range(1, 30)]
    devices = [replace(device(a), vectors=2048) for a in addresses]
    backend = SimBackend(host(*devices), guest(*addresses), profile_named("linux-7.2"))
    s2 = backend.alloc_s2(0)
    for address in addresses[:28]:
        backend.attach(address, s2)
        backend.prepare_msi(address)
    backend.detach(addresses[0])
    backend.attach(addresses[28], s2)
    assert errors(backend.prepare_msi, addresses[28]) == ("ENODEV", "ENOMEM")
    backend.attach(addresses[0], s2)
    backend.prepare_msi(addresses[0])


def test_a_refused_address_leaves_the_events_of_the_its():
    backend = sim("linux-7.2", device(A))
    for _ in range(3):
        assert errors(backend.prepare_msi, A) == ("ENOSPC", "EOPNOTSUPP")
    backend.advertise_rmr(SW_MSI_WINDOW)
    backend.attach(A, backend.alloc_s2(0))
    backend.prepare_msi(A)
    assert backend.deliver(A).outcome is Outcome.DELIVERED


def test_devices_with_one_device_id_share_a_table():
    devices = [replace(device(a, group=7), device_id=DeviceId(9)) for a in (A, B)]
    backend = sim("linux-7.2", *devices, stage1={A: "s1", B: "s1"})
    backend.advertise_rmr(SW_MSI_WINDOW)
    s2 = backend.alloc_s2(0)
    for address in (A, B):
        backend.attach(address, s2)
        backend.prepare_msi(address)
    assert [backend.deliver(a).outcome for a in (A, B)] == [Outcome.DELIVERED] * 2
    assert backend.deliver(B).lpi == backend.deliver(A).lpi + 2


def test_a_doorbell_is_not_bound_over_a_slot_of_another_stage_2():
    """is_slot: any device that is attached here later may need the slot."""
    backend = sim("linux-7.2-bind", device(A), device(B), device(C))
    one, other = backend.alloc_s2(0), backend.alloc_s2(0)
    backend.attach(A, one)
    slot = SW_MSI_WINDOW.base + 0x40
    assert backend.prepare_msi(A) == slot
    for address in (B, C):
        backend.attach(address, other)
    bound = Iova(0xFFFF_0000), Ipa(SW_MSI_WINDOW.base), 4096
    assert errors(backend.bind_guest_msi, B, *bound) == ("EEXIST", None)
    assert backend.prepare_msi(C) == slot
    backend.detach(A)
    backend.attach(A, other)
    assert backend.prepare_msi(A) == slot


@pytest.mark.parametrize(("profile", "can"), [("series-v3", False), ("series-v8", True)])
def test_unbind_came_after_revision_3(profile, can):
    backend = sim(profile, device(A))
    backend.attach(A, backend.alloc_s2(0))
    backend.bind_guest_msi(A, Iova(0xFFFF_0000), GDB, 4096)
    backend.prepare_msi(A)
    assert backend.deliver(A).outcome is Outcome.DELIVERED
    if not can:
        assert code(backend.unbind_guest_msi, A, Iova(0xFFFF_0000)) == "ENOTTY"
        return
    backend.unbind_guest_msi(A, Iova(0xFFFF_0000))
    assert backend.stale() == []
    assert backend.deliver(A).outcome is Outcome.S2_FAULT


def test_an_iommu_group_with_a_hw_msi_region_gets_no_cookie():
    devices = device(A, group=7), device(B, group=7, reserved=(HW_MSI,))
    backend = SimBackend(host(*devices), guest(A), profile_named("series-v2"))
    backend.attach(A, backend.alloc_s2(0))
    assert code(backend.bind_guest_msi, A, Iova(0xFFFF_0000), GDB, 4096) == "EINVAL"
    assert backend.prepare_msi(A) == 0x2_0001_0040


def test_the_cookie_has_the_highest_window_of_an_iommu_group():
    window = ReservedRegion(0x0A00_0000, 0x10_0000, ReservedKind.SW_MSI)
    devices = device(A, group=7), device(B, group=7, reserved=(window,))
    backend = SimBackend(host(*devices), guest(A), profile_named("pre-series"))
    backend.attach(A, backend.alloc_s2(0))
    assert backend.prepare_msi(A) == 0x0A00_0040


@pytest.mark.parametrize(("profile", "left"), [("series-v2", 1), ("series-v8", 0)])
def test_a_binding_that_one_iommu_domain_refuses_is_withdrawn_in_those_before(profile, left):
    devices = device(A), device(B, smmu=1, reserved=())
    one = {A: "s1", B: "s1"}
    backend = sim(profile, *devices, containers=ContainerPer.GUEST, stage1=one)
    backend.attach(B, backend.alloc_s2(1))
    backend.attach(A, backend.alloc_s2(0))
    assert code(backend.bind_guest_msi, A, Iova(0xFFFF_0000), GDB, 4096) == "EINVAL"
    assert backend.costs().bindings == left


def test_an_iommu_domain_without_a_cookie_has_nothing_to_withdraw():
    devices = device(A), device(B, smmu=1, reserved=())
    one = {A: "s1", B: "s1"}
    backend = sim("series-v8", *devices, containers=ContainerPer.GUEST, stage1=one)
    backend.attach(A, backend.alloc_s2(0))
    backend.bind_guest_msi(A, Iova(0xFFFF_0000), GDB, 4096)
    backend.attach(B, backend.alloc_s2(1))
    backend.unbind_guest_msi(A, Iova(0xFFFF_0000))
    assert backend.costs().bindings == 0


def test_with_a_device_handle_a_binding_is_for_every_device_of_the_groups():
    backend = SimBackend(
        host(device(A, group=7), device(B, group=7)), guest(A), profile_named("series-v4")
    )
    backend.attach(A, backend.alloc_s2(0))
    backend.bind_guest_msi(A, Iova(0xFFFF_0000), GDB, 4096)
    assert backend.costs().bindings == 2
    backend.unbind_guest_msi(A, Iova(0xFFFF_0000))
    assert backend.costs().bindings == 0


def test_the_last_device_of_a_container_withdraws_a_binding():
    devices = device(A), device(B, smmu=1)
    backend = sim("series-v8", *devices, containers=ContainerPer.GUEST, stage1={A: "s1", B: "s1"})
    for number, address in enumerate((A, B)):
        backend.attach(address, backend.alloc_s2(number))
    for address in (A, B):
        backend.bind_guest_msi(address, Iova(0xFFFF_0000), GDB, 4096)
        backend.prepare_msi(address)
    backend.unbind_guest_msi(A, Iova(0xFFFF_0000))
    assert backend.deliver(B).outcome is Outcome.DELIVERED
    backend.unbind_guest_msi(B, Iova(0xFFFF_0000))
    assert backend.costs().bindings == 0
    assert backend.deliver(B).outcome is Outcome.S2_FAULT


@pytest.mark.parametrize("allocator", [MsiAllocator.V2, MsiAllocator.V4, MsiAllocator.V8])
def test_a_device_of_a_nest_parent_leaves_the_binding_of_another(allocator):
    backend = sim("linux-7.2-bind", device(A), device(B))
    s2 = backend.alloc_s2(0, allocator=allocator)
    for address in (A, B):
        backend.attach(address, s2)
        backend.bind_guest_msi(address, Iova(0xFFFF_0000), GDB, 4096)
    backend.prepare_msi(A)
    backend.unbind_guest_msi(A, Iova(0xFFFF_0000))
    assert backend.costs().bindings == 1
    backend.prepare_msi(B)
    assert backend.deliver(B).outcome is Outcome.DELIVERED
    backend.unbind_guest_msi(B, Iova(0xFFFF_0000))
    assert backend.costs().bindings == 0


def test_a_large_stage_1_granule_is_refused_in_revision_15_only():
    for profile in ("series-v2", "series-v8"):
        backend = sim(profile, device(A))
        backend.attach(A, backend.alloc_s2(0))
        backend.bind_guest_msi(A, Iova(0xFFFF_0000), GDB, 65536)
    backend = sim("series-v15", device(A))
    backend.attach(A, backend.alloc_s2(0))
    assert code(backend.bind_guest_msi, A, Iova(0xFFFF_0000), GDB, 65536) == "EINVAL"


def test_pre_series_allocates_pages_per_iommu_domain():
    shared = {A: "s1", B: "s1", C: "s1"}
    devices = device(A), device(B, its=1), device(C)
    backend = sim("pre-series", *devices, containers=ContainerPer.GUEST, stage1=shared)
    one, two = backend.alloc_s2(0), backend.alloc_s2(0)
    backend.attach(A, one)
    backend.attach(B, one)
    backend.attach(C, two)
    assert [backend.prepare_msi(d) for d in (A, B, C)] == [0x8000040, 0x8001040, 0x8000040]


def test_the_cookie_begins_at_the_window_of_the_device_that_the_domain_was_made_for():
    other = ReservedRegion(0x0A00_0000, 0x10_0000, ReservedKind.SW_MSI)
    backend = sim("pre-series", device(A, reserved=(other,)))
    backend.attach(A, backend.alloc_s2(0))
    assert backend.prepare_msi(A) == 0x0A00_0040


@pytest.mark.parametrize("profile", SERIES)
def test_without_a_cookie_the_device_gets_the_physical_doorbell(profile):
    backend = sim(profile, device(A))
    backend.attach(A, backend.alloc_s2(0, allocator=MsiAllocator.CALLER))
    assert backend.prepare_msi(A) == 0x2_0001_0040
    expected = "ENOTTY" if profile in {"pre-series", "series-v16"} else "EINVAL"
    assert code(backend.bind_guest_msi, A, Iova(0xFFFF_0000), GDB, 4096) == expected


@pytest.mark.parametrize("revision", [r for r in REVISIONS if r.has_bindings])
def test_a_device_without_a_free_binding(revision):
    """Before revision 8 the MSI is enabled with an address of all ones, and faults there."""
    backend = sim(f"series-v{revision.number}", device(A))
    backend.attach(A, backend.alloc_s2(0, allocator=revision.allocator))
    if revision.number < 8:
        assert backend.prepare_msi(A) == (1 << 64) - 1
        verdict = backend.deliver(A)
        assert (verdict.outcome, verdict.programmed) == (Outcome.S1_FAULT, (1 << 64) - 1)
        return
    with pytest.raises(BackendError, match=r"^ENOSPC \(ENOMEM in the kernel\): ") as refusal:
        backend.prepare_msi(A)
    assert (refusal.value.errno, refusal.value.inside) == (errno.ENOSPC, errno.ENOMEM)


def test_the_17th_slot_of_64k_pages_is_outside_of_the_rmr():
    addresses = [PciAddress(0, bus, 0, 0) for bus in range(1, 18)]
    devices = [device(a, its=0) for a in addresses]
    devices = [replace(d, its_group=(i,)) for i, d in enumerate(devices)]
    itses = tuple(Its(i, Pa(0x2_0000_0000 + i * 0x100_0000)) for i in range(17))
    topology = replace(host(*devices, granule=Granule.K64), itses=itses)
    backend = SimBackend(topology, guest(*addresses), profile_named("linux-7.2"))
    backend.advertise_rmr(SW_MSI_WINDOW)
    s2 = backend.alloc_s2(0)
    outcomes = []
    for address in addresses:
        backend.attach(address, s2)
        backend.prepare_msi(address)
        outcomes.append(backend.deliver(address).outcome)
    assert outcomes == [Outcome.DELIVERED] * 16 + [Outcome.S1_FAULT]
    assert backend.deliver(addresses[-1]).programmed == 0x8100040


def test_a_doorbell_of_another_its_is_misrouted():
    backend = sim("series-v15", device(A, its=0))
    s2 = backend.attach(A, backend.alloc_s2(0, allocator=MsiAllocator.CALLER))
    backend.map_doorbell(s2, GDB, 1)
    backend.program_msi(A, Iova(0xFFFF_0000))
    verdict = backend.deliver(A)
    assert (verdict.outcome, verdict.its, verdict.expected_its) == (Outcome.MISROUTED, 1, 0)
    assert "does not know DeviceID" in verdict.reason


def test_msis_are_raised_only_when_enabled():
    backend = sim("series-v15", device(A))
    assert code(backend.deliver, A) == "EINVAL"


def test_one_stage_1_cannot_map_one_giova_to_two_doorbells():
    contradiction = replace(
        guest(A, B, stage1={A: "s1", B: "s1"}),
        vits=(Vits(0, Ipa(0x0A08_0000)), Vits(1, Ipa(0x0A0A_0000))),
        devices=(
            GuestDevice(A, "s1", 0, Iova(0xFFFF_0000)),
            GuestDevice(B, "s1", 1, Iova(0xFFFF_0000)),
        ),
    )
    with pytest.raises(InputError, match="two doorbells"):
        SimBackend(host(device(A), device(B)), contradiction, profile_named("linux-7.2"))


def test_the_default_profile_with_some_capabilities():
    binds = profile_named("linux-7.2-bind")
    assert default_profile({Capability.GUEST_BINDING_DIRECT}) is binds
    assert default_profile({Capability.KERNEL_DOORBELL_MAP}) is profile_named("series-v16")
    assert default_profile({Capability.SW_MSI_SLOTS, Capability.GUEST_UNBIND}) is binds
    assert default_profile({Capability.SW_MSI}) is profile_named("linux-7.2")
    with pytest.raises(UsageError, match=r"unknown; .*valid: pre-series, series-v1"):
        profile_named("linux-1.0")


def test_a_device_with_two_stream_ids_has_no_vdevice():
    backend = sim("linux-7.2", replace(device(A), streams=2))
    s2 = backend.alloc_s2(0)
    assert code(backend.attach, A, s2) == "EOPNOTSUPP"
    backend.free_s2(s2)


def test_a_reserved_region_in_a_mapped_64k_page():
    inside = ReservedRegion(GDB + 0x4000, 0x1000, ReservedKind.RESERVED)
    devices = [device(A), device(B, reserved=(SW_MSI_WINDOW, inside))]
    backend = sim("linux-7.2", *devices, granule=Granule.K64)
    s2 = backend.alloc_s2(0)
    backend.attach(A, s2)
    backend.map_doorbell(s2, GDB, 0)
    assert code(backend.attach, B, s2) == "EADDRINUSE"
    backend.unmap_doorbell(s2, GDB)
    backend.attach(B, s2)
    assert code(backend.map_doorbell, s2, GDB, 0) == "EINVAL"


def test_slots_count_per_window():
    other = ReservedRegion(0x0A00_0000, 0x10_0000, ReservedKind.SW_MSI)
    backend = sim("linux-7.2", device(A), device(B, its=1, reserved=(other,)))
    s2 = backend.alloc_s2(0)
    programmed = []
    for address in (A, B):
        backend.attach(address, s2)
        programmed.append(backend.prepare_msi(address))
    assert programmed == [0x0800_0040, 0x0A00_0040]
    assert backend.costs().sw_msi_slots == 2


def test_slots_follow_a_group_to_another_stage_2():
    backend = sim("linux-7.2", device(A))
    first = backend.alloc_s2(0)
    backend.attach(A, first)
    backend.prepare_msi(A)
    backend.detach(A)
    backend.free_s2(first)
    second = backend.alloc_s2(0)
    assert backend.costs().s2_mappings == 0
    backend.attach(A, second)
    assert backend.costs().s2_mappings == 1


def test_an_msi_at_another_its_with_the_same_device_id_is_misrouted():
    one, two = device(A), device(B, its=1)
    two = replace(two, device_id=one.device_id)
    backend = sim("series-v15", one, two)
    asked = backend.alloc_s2(0, allocator=MsiAllocator.CALLER)
    for address in (A, B):
        backend.map_doorbell(backend.attach(address, asked), GDB, 1)
        backend.program_msi(address, Iova(0xFFFF_0000))
    misrouted, delivered = backend.deliver(A), backend.deliver(B)
    assert (misrouted.outcome, delivered.outcome) == (Outcome.MISROUTED, Outcome.DELIVERED)
    assert misrouted.reason == "ITS 1 has DeviceID 0x1 for another device"
    assert backend.deliver(A).lpi is None


def test_a_guest_that_cannot_map_its_doorbell_leaves_nothing_attached():
    far = replace(guest(A), devices=(GuestDevice(A, "s1-1", 0, Iova(1 << 48)),))
    backend = SimBackend(host(device(A)), far, profile_named("linux-7.2"))
    s2 = backend.alloc_s2(0)
    before = backend.snapshot()
    assert code(backend.attach, A, s2) == "ERANGE"
    assert backend.snapshot() == before
    backend.free_s2(s2)
