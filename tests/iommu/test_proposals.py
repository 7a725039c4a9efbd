"""Kernels with what was proposed and not merged: docs/kernels.md names the posting of each rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scenarios import A as FIRST
from scenarios import B as SECOND
from scenarios import pair

from vmm_msi.errors import BackendError, errno_name
from vmm_msi.host.scenario import parse_scenario
from vmm_msi.iommu.backend import MsiAllocator
from vmm_msi.iommu.profiles import PROFILES, profile_named
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.iommu.sim.core import IommuCore
from vmm_msi.iommu.sim.proposals import ProposedIommufd
from vmm_msi.types import (
    SW_MSI_WINDOW,
    Granule,
    Iova,
    Ipa,
    MemoryRange,
    Outcome,
    PciAddress,
    ReservedKind,
    ReservedRegion,
)

A, B = PciAddress.parse(FIRST), PciAddress.parse(SECOND)
OPTION, PRESET, PAGE = "linux-sw-msi-option", "linux-vfio-msi-iova", "linux-map-msi-page"
MIB = 1 << 20
RELAXABLE = ReservedRegion(0x2000_0000, 0x1000, ReservedKind.DIRECT_RELAXABLE)
RESERVED = ReservedRegion(0x3000_0000, 0x1000, ReservedKind.RESERVED)


def window(base, mebibytes=1):
    return ReservedRegion(base, mebibytes * MIB, ReservedKind.SW_MSI)


def scenario(*, reserved=(SW_MSI_WINDOW,), memory=None, granule=Granule.K4, **options):
    sample = parse_scenario(pair("own", **options).toml(), "test")
    devices = tuple(replace(d, reserved=reserved) for d in sample.host.devices)
    host = replace(sample.host, devices=devices, granule=granule)
    guest = sample.guest
    if memory is not None:
        guest = replace(guest, memory=tuple(MemoryRange(Ipa(b), size) for b, size in memory))
    return replace(sample, host=host, guest=guest)


def sim(profile, **options):
    sample = scenario(**options)
    return SimBackend(sample.host, sample.guest, profile_named(profile))


def refusal(call, *arguments):
    with pytest.raises(BackendError) as error:
        call(*arguments)
    inside = error.value.inside
    return errno_name(error.value.errno), None if inside is None else errno_name(inside)


@pytest.fixture
def fd():
    sample = scenario(reserved=(SW_MSI_WINDOW, RELAXABLE, RESERVED))
    fd = ProposedIommufd(sample.host, IommuCore(sample.host))
    return fd, fd.bind(sample.host.device_by_address[A])


@pytest.mark.parametrize(
    ("base", "code"),
    [
        (0x0809_0000, "EINVAL"),
        (RESERVED.base, "EADDRINUSE"),
    ],
)
def test_a_start_that_is_refused(fd, base, code):
    fd, device = fd
    assert refusal(fd.set_window_start, device, base) == (code, None)


@pytest.mark.parametrize("base", [SW_MSI_WINDOW.base, RELAXABLE.base, 0, (1 << 64) - MIB])
def test_a_start_that_is_taken(fd, base):
    """The driver's own window is replaced, and an IOAS does not enforce direct-relaxable ones."""
    fd, device = fd
    fd.set_window_start(device, base)
    fd.set_window_size(device, 1)


def test_sizes(fd):
    fd, device = fd
    assert refusal(fd.set_window_size, device, 1) == ("EINVAL", None)
    fd.set_window_start(device, RESERVED.base - MIB)
    assert refusal(fd.set_window_size, device, 2) == ("EADDRINUSE", None)
    assert refusal(fd.set_window_size, device, 1 << 44) == ("EINVAL", None)
    assert refusal(fd.set_window_size, device, (1 << 44) - 1) == ("EOVERFLOW", None)
    fd.set_window_size(device, 1)
    assert refusal(fd.set_window_start, device, RESERVED.base) == ("EADDRINUSE", None)
    fd.set_window_size(device, 0)


def test_the_id_of_another_object(fd):
    fd, _device = fd
    for number in (0, fd.ioas_alloc()):
        assert refusal(fd.set_window_start, number, MIB) == ("ENOENT", None)
        assert refusal(fd.set_window_size, number, 0) == ("ENOENT", None)


def test_the_window_of_an_attached_device_stays():
    backend = sim(OPTION)
    s2 = backend.alloc_s2(0)
    backend.move_sw_msi_window(A, window(0x1000_0000))
    backend.attach(A, s2)
    for moved in (window(0x2000_0000), None):
        assert refusal(backend.move_sw_msi_window, A, moved) == ("EBUSY", None)
    assert backend.sw_msi_window(A) == window(0x1000_0000)
    assert backend.prepare_msi(A) == 0x1000_0040
    backend.detach(A)
    backend.move_sw_msi_window(A, None)
    backend.attach(A, s2)
    assert backend.prepare_msi(A) == 0x0800_0040
    assert backend.costs().sw_msi_slots == 2


def test_the_moved_window_is_reserved_in_place_of_the_drivers():
    backend = sim(OPTION)
    s2 = backend.alloc_s2(0)
    backend.move_sw_msi_window(A, window(0x1000_0000, 2))
    backend.attach(A, s2)
    assert refusal(backend.map_doorbell, s2, Ipa(0x101F_0000), 0) == ("EINVAL", None)
    backend.map_doorbell(s2, Ipa(0x0809_0000), 0)
    backend.attach(B, backend.alloc_s2(0))


def test_guest_ram_in_a_window():
    ram = (0x0800_0000, 0x0200_0000), (0x4000_0000, 0x1000_0000)
    backend = sim(OPTION, memory=ram)
    s2 = backend.alloc_s2(0)
    assert refusal(backend.attach, A, s2) == ("EADDRINUSE", None)
    backend.move_sw_msi_window(A, window(0x1000_0000))
    backend.attach(A, s2)
    backend.move_sw_msi_window(B, window(0x4000_0000))
    assert refusal(backend.attach, B, s2) == ("EADDRINUSE", None)


def test_slots_of_several_windows():
    """Numbered for each start; every window stays reserved."""
    backend = sim(OPTION, pits=2)
    s2 = backend.alloc_s2(0)
    for device, base in ((A, 0x1000_0000), (B, 0x1010_0000)):
        backend.move_sw_msi_window(device, window(base))
        backend.attach(device, s2)
        assert backend.prepare_msi(device) == base + 0x40
    assert backend.costs().sw_msi_slots == 2


def test_the_device_that_a_group_is_attached_by_decides():
    sample = scenario()
    devices = tuple(replace(d, iommu_group=7) for d in sample.host.devices)
    guest = replace(
        sample.guest,
        devices=tuple(replace(d, stage1=sample.guest.stage1[0].id) for d in sample.guest.devices),
    )
    for profile, addresses in ((OPTION, (0x1000_0040, 0x1000_0040)), (PAGE, (0xA040, 0xA040))):
        backend = SimBackend(replace(sample.host, devices=devices), guest, profile_named(profile))
        s2 = backend.alloc_s2(0)
        for device, base, giova in ((A, 0x1000_0000, 0xA000), (B, 0x2000_0000, 0xB000)):
            backend.move_sw_msi_window(device, window(base))
            if profile == PAGE:
                backend.preset_msi(device, Iova(giova))
            backend.attach(device, s2)
        assert (backend.prepare_msi(A), backend.prepare_msi(B)) == addresses


def test_the_first_posting_checks_nothing_and_reserves_the_drivers_window():
    backend = sim(PRESET, pits=2, reserved=(SW_MSI_WINDOW, RESERVED))
    s2 = backend.alloc_s2(0)
    backend.move_sw_msi_window(A, window(RESERVED.base + 0x1000))
    backend.attach(A, s2)
    assert backend.prepare_msi(A) == RESERVED.base + 0x1040
    assert refusal(backend.map_doorbell, s2, Ipa(0x0809_0000), 0) == ("EINVAL", None)
    backend.map_doorbell(s2, Ipa(RESERVED.base + 0x9000), 0)
    # It counts at the attach, and for the devices that have their own it is set before theirs.
    backend.move_sw_msi_window(A, window(0x1000_0000))
    backend.attach(B, s2)
    assert backend.prepare_msi(B) == 0x0800_0040
    assert backend.prepare_msi(A) == RESERVED.base + 0x1040


def test_in_the_first_posting_a_group_keeps_its_start():
    backend = sim(PRESET)
    s2 = backend.alloc_s2(0)
    backend.move_sw_msi_window(A, window(0x0809_0000))
    backend.attach(A, s2)
    backend.detach(A)
    backend.move_sw_msi_window(A, None)
    backend.attach(A, s2)
    assert backend.prepare_msi(A) == 0x0809_0040


def test_guest_ram_at_the_first_slot():
    backend = sim(PRESET)
    s2 = backend.alloc_s2(0)
    backend.move_sw_msi_window(A, window(0x4000_0000))
    backend.preset_msi(A, Iova(0xFFFF_F000))
    backend.attach(A, s2)
    assert refusal(backend.prepare_msi, A) == ("ENOSPC", "EEXIST")


@pytest.mark.parametrize(
    ("granule", "programmed"), [(Granule.K4, 0xFFFF_F040), (Granule.K64, 0xFFFF_0040)]
)
def test_a_preset_address_loses_the_bits_below_the_page_size(granule, programmed):
    backend = sim(PRESET, granule=granule)
    backend.preset_msi(A, Iova(0xFFFF_F040))
    backend.attach(A, backend.alloc_s2(0))
    assert backend.prepare_msi(A) == programmed
    assert backend.costs().sw_msi_slots == 1


def test_a_device_without_a_preset_address_gets_its_slot():
    backend = sim(PRESET)
    backend.preset_msi(A, Iova(0xFFFF_F000))
    backend.attach(A, backend.alloc_s2(0))
    assert backend.prepare_msi(A) == 0xFFFF_F040
    backend.preset_msi(A, None)
    assert backend.prepare_msi(A) == 0x0800_0040


def test_a_device_without_a_window_gets_the_doorbell_itself():
    backend = sim(PAGE, reserved=())
    backend.preset_msi(A, Iova(0xFFFF_F000))
    backend.attach(A, backend.alloc_s2(0))
    assert backend.prepare_msi(A) == 0x2_0001_0040


def test_a_mapped_page_obeys_the_rules_of_an_ioas():
    backend = sim(PAGE, pits=2)
    s2 = backend.alloc_s2(0, allocator=MsiAllocator.CALLER)
    backend.move_sw_msi_window(A, window(0x1000_0000))
    backend.preset_msi(A, Iova(0xFFFF_F000))
    backend.attach(A, s2)
    backend.map_doorbell(s2, Ipa(0x0809_0000), 0)
    assert refusal(backend.map_doorbell, s2, Ipa(0x0809_0000), 1) == ("EEXIST", None)
    assert refusal(backend.map_doorbell, s2, Ipa(0x1000_0000), 0) == ("EINVAL", None)
    backend.prepare_msi(A)
    assert backend.deliver(A).outcome is Outcome.DELIVERED


@pytest.mark.parametrize("profile", [p.name for p in PROFILES if not p.standing])
def test_kernels_without_the_calls(profile):
    backend = sim(profile)
    for moved in (SW_MSI_WINDOW, None):
        assert refusal(backend.move_sw_msi_window, A, moved) == ("EOPNOTSUPP", None)
    for giova in (Iova(0xFFFF_F000), None):
        assert refusal(backend.preset_msi, A, giova) == ("EINVAL", None)


def test_the_option_alone_presets_nothing():
    assert refusal(sim(OPTION).preset_msi, A, Iova(0)) == ("EINVAL", None)
