"""The strategies ``window``, ``preset`` and ``mapped-page``: what each lifts, where it fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scenarios import GIOVA_A, GIOVA_B, A, B, Device, Sample, guest_run, pair, simulated_verdicts

from vmm_msi.config import Choice
from vmm_msi.engine.setup import profile_for
from vmm_msi.host.scenario import parse_scenario
from vmm_msi.iommu.profiles import profile_named
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.types import (
    Ipa,
    MemoryRange,
    Outcome,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    Verdict,
)

PLUGINS = PluginManager.load()
ELSEWHERE = ReservedRegion(0xA000_0000, 0x10_0000, ReservedKind.SW_MSI)
MAPPED = ["mapped-page:mode=vits", "mapped-page:mode=s2"]
#: RAM in QEMU's RMR, and the rest of a guest's.
RAM_IN_WINDOW = ((0x0800_0000, 0x0200_0000), (0x4000_0000, 0x1000_0000))


def verdicts(sample: Sample | str, strategy: str, *, memory=(), reserved=None) -> list[Verdict]:
    """Return the verdicts of a scenario on the kernel that the strategy needs."""
    text = sample if isinstance(sample, str) else sample.toml()
    scenario = parse_scenario(text, "test")
    host, guest = scenario.host, scenario.guest
    if memory:
        guest = replace(guest, memory=tuple(MemoryRange(Ipa(base), size) for base, size in memory))
    if reserved is not None:
        devices = tuple(replace(device, reserved=reserved) for device in host.devices)
        host = replace(host, devices=devices)
    scenario = replace(scenario, host=host, guest=guest)
    choice = Choice.parse(strategy)
    profile = choice.profile or profile_for(PLUGINS, [choice]).name
    return simulated_verdicts(scenario, strategy, profile)


def outcomes(result: list[Verdict]) -> list[str]:
    return [verdict.outcome.value for verdict in result]


D, LOST, NO, S1, S2 = "delivered", "misrouted", "refused", "s1-fault", "s2-fault"


def test_identity_is_refused_where_window_delivers():
    for more in ({"memory": RAM_IN_WINDOW}, {"reserved": (ELSEWHERE,)}):
        assert outcomes(verdicts(pair("own"), "identity", **more)) == [NO, NO]
        assert outcomes(verdicts(pair("own"), "window", **more)) == [D, D]


def test_the_window_is_where_qemus_rmr_is_if_that_is_free():
    assert verdicts(pair("own"), "window")[0].programmed == 0x0800_0040
    elsewhere = verdicts(pair("own"), "window", reserved=(ELSEWHERE,))
    assert elsewhere[0].programmed == 0x0800_0040
    moved = verdicts(pair("own"), "window", memory=RAM_IN_WINDOW)
    assert moved[0].programmed == 0x0A00_0040


def test_the_window_has_room_for_all_slots():
    """With 64K pages and the kernel's window, the 17th ITS has none: identity's RMR is 1 MiB."""
    devices = tuple(
        Device(f"0000:{bus:02x}:00.0", its=bus - 1, giova=0xFFFF_0000) for bus in range(1, 18)
    )
    sample = Sample(devices, granule="64K", s1_granule="64K")
    assert outcomes(verdicts(sample, "window")) == [D] * 17
    assert outcomes(verdicts(sample, "identity")) == [D] * 16 + [S1]


def test_window_requires_a_guest_that_honours_the_rmr():
    assert outcomes(verdicts(pair("own", honours_rmr=False), "window")) == [S1, S1]


@pytest.mark.parametrize("strategy", ["direct", "multi-its:mode=s2", "multi-its:mode=vits"])
def test_a_doorbell_in_the_window(strategy):
    for profile, expected in (
        ("linux-7.2", [NO, NO]),
        # The driver's window stays reserved.
        ("linux-vfio-msi-iova", [NO, NO]),
        ("linux-sw-msi-option", [D, D]),
    ):
        separator = "," if ":" in strategy else ":"
        result = verdicts(pair("own"), f"{strategy}{separator}profile={profile}")
        assert outcomes(result) == expected


@pytest.mark.parametrize("strategy", ["window", "preset", *MAPPED])
@pytest.mark.parametrize("config", ["bypass", "s1dss-bypass"])
def test_a_guest_that_bypasses_stage_1(strategy, config):
    text = pair("own-same").toml().replace("giova = 0xfffff000\n", "")
    for name in ("s1a", "s1b"):
        text = text.replace(f'id = "{name}"\n', f'id = "{name}"\nconfig = "{config}"\n')
    assert outcomes(verdicts(text, strategy)) == [D, D]


def test_preset_writes_the_guests_own_address_at_every_enable():
    scenario = parse_scenario(pair("own").toml(), "test")
    backend = SimBackend(scenario.host, scenario.guest, profile_named("linux-vfio-msi-iova"))
    with guest_run(scenario, backend, "preset") as session:
        assert outcomes(list(session.attach_and_deliver())) == [D, D]
        device = PciAddress.parse(A)
        for _ in range(2):
            assert backend.prepare_msi(device) == GIOVA_A + 0x40
            assert backend.deliver(device).outcome is Outcome.DELIVERED


def test_preset_needs_neither_an_rmr_nor_qemus_doorbell():
    sample = pair("own", honours_rmr=False, vits_bases={0: 0x0A08_0000})
    result = verdicts(sample, "preset")
    assert outcomes(result) == [D, D]
    assert [verdict.programmed for verdict in result] == [GIOVA_A + 0x40, GIOVA_B + 0x40]


def test_preset_with_a_second_its_behind_one_doorbell_reaches_the_first():
    result = verdicts(pair("own", pits=2), "preset")
    assert outcomes(result) == [D, LOST]
    assert (result[1].its, result[1].expected_its) == (0, 1)


def test_preset_behind_two_smmus():
    """Slots are numbered per file descriptor: the second ITS's page is not at gDB anywhere."""
    one = Sample((Device(A), Device(B, smmu=1, stage1="s1b")))
    assert outcomes(verdicts(one, "preset")) == [D, D]
    two = Sample((Device(A), Device(B, smmu=1, its=1, stage1="s1b")))
    assert outcomes(verdicts(two, "preset")) == [D, S2]


def test_preset_where_guest_ram_is():
    in_driver_window = verdicts(pair("own"), "preset", memory=RAM_IN_WINDOW)
    assert [verdict.errno for verdict in in_driver_window] == [98, 98]
    at_doorbell = verdicts(
        pair("own", vits_bases={0: 0x0A08_0000}),
        "preset",
        memory=((0x0A00_0000, 0x0100_0000), (0x4000_0000, 0x1000_0000)),
    )
    assert [(v.errno, v.errno_inside) for v in at_doorbell] == [(28, 17), (28, 17)]


def test_the_later_option_has_no_room_for_qemus_doorbell():
    result = verdicts(pair("own"), "preset:profile=linux-map-msi-page")
    assert [verdict.errno for verdict in result] == [22, 22]
    assert "0x8090000: not a multiple of 1 MiB" in result[0].reason
    aligned = pair("own", vits_bases={0: 0x0A0F_0000})
    assert outcomes(verdicts(aligned, "preset:profile=linux-map-msi-page")) == [D, D]


@pytest.mark.parametrize("strategy", ["preset", *MAPPED])
def test_a_host_with_larger_pages_than_the_guest(strategy):
    """The kernel drops the bits of gIOVA below its page size."""
    unaligned = Sample((Device(A, giova=0xFFFF_F000),), granule="64K", s1_granule="4K")
    assert outcomes(verdicts(unaligned, strategy)) == [S1]
    aligned = Sample((Device(A, giova=0xFFFF_0000),), granule="64K", s1_granule="4K")
    assert outcomes(verdicts(aligned, strategy)) == [D]


@pytest.mark.parametrize("strategy", MAPPED)
def test_mapped_page_moves_the_window_off_ram_and_doorbells(strategy):
    for more in ({}, {"memory": RAM_IN_WINDOW, "sample": pair("own", vits_bases={0: 0x0A08_0000})}):
        sample = more.pop("sample", pair("own"))
        result = verdicts(sample, strategy, **more)
        assert outcomes(result) == [D, D]
        assert [verdict.programmed for verdict in result] == [GIOVA_A + 0x40, GIOVA_B + 0x40]


def test_two_itses_by_mapped_pages():
    one_vits, two_vits = pair("own", pits=2), pair("own", pits=2, vits=2)
    conflict = verdicts(one_vits, MAPPED[0])
    assert outcomes(conflict) == [D, NO]
    assert "conflict" in conflict[1].reason
    assert outcomes(verdicts(two_vits, MAPPED[0])) == [D, D]
    for sample in (one_vits, two_vits):
        assert outcomes(verdicts(sample, MAPPED[1])) == [D, D]


@pytest.mark.parametrize("strategy", MAPPED)
def test_a_group_with_two_itses_is_refused(strategy):
    sample = Sample((Device(A, group=1), Device(B, its=1, group=1)))
    result = verdicts(sample, strategy)
    assert outcomes(result) == [D, NO]
    assert "IOMMU group 1 shares one translation" in result[1].reason
