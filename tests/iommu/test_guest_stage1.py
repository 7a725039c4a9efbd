"""How long a guest's doorbell stays mapped in its stage 1: as long as the stage 1 has a device.

Linux drivers/iommu/dma-iommu.c iommu_dma_get_msi_page, which never removes a page, and
iommu_put_dma_cookie, which frees them with the IOMMU domain.
"""

from __future__ import annotations

import pytest
from scenarios import GIOVA_A, GIOVA_B, B, guest_run, pair

from vmm_msi.host.scenario import parse_scenario
from vmm_msi.iommu.guest_stage1 import GuestStage1
from vmm_msi.iommu.profiles import profile_named
from vmm_msi.iommu.sim.backend import SimBackend
from vmm_msi.iommu.sim.page_table import PageTable
from vmm_msi.types import SW_MSI_WINDOW, Outcome, PciAddress

GDB = 0x0809_0000


def _guest(mode: str = "shared", **more: object):
    return parse_scenario(pair(mode, **more).toml(), "test").guest


def _stage1(guest) -> GuestStage1[PageTable]:
    return GuestStage1(guest, lambda stage1, _asid: PageTable(stage1.granule))


def test_a_removed_device_leaves_its_doorbell_to_the_others_of_its_stage_1():
    guest = _guest(giova_b=GIOVA_B)
    a, b = guest.devices
    stage1 = _stage1(guest)
    stage1.add_device(a)
    stage1.add_device(b)
    both = {(GIOVA_A, GDB), (GIOVA_B, GDB)}
    assert stage1.tables["s1a"].pages() == both
    assert not stage1.remove_device(b)
    assert stage1.tables["s1a"].pages() == both
    assert stage1.remove_device(a)
    assert stage1.tables["s1a"].pages() == set()


def test_a_device_takes_no_mapping_of_another_stage_1():
    guest = _guest("own")
    a, b = guest.devices
    stage1 = _stage1(guest)
    stage1.add_device(a)
    stage1.add_device(b)
    assert stage1.remove_device(b)
    assert stage1.tables["s1a"].pages() == {(GIOVA_A, GDB)}
    assert stage1.tables["s1b"].pages() == set()


def test_withdrawing_an_rmr_leaves_a_doorbell_that_was_mapped_there_before():
    guest = _guest(giova_b=int(SW_MSI_WINDOW.base))
    stage1 = _stage1(guest)
    for device in guest.devices:
        stage1.add_device(device)
    stage1.advertise(SW_MSI_WINDOW)
    stage1.withdraw()
    assert (SW_MSI_WINDOW.base, GDB) in stage1.tables["s1a"].pages()


def _session(profile: str, strategy: str, **more: object):
    sample = pair("shared", giova_b=GIOVA_B, order="batched", containers="guest", **more)
    scenario = parse_scenario(sample.toml(), "test")
    backend = SimBackend(scenario.host, scenario.guest, profile_named(profile))
    return backend, guest_run(scenario, backend, strategy)


@pytest.mark.parametrize(
    ("profile", "outcome"),
    [("series-v2", Outcome.DELIVERED), ("series-v8", Outcome.S2_FAULT)],
)
def test_a_detached_device_leaves_the_giova_that_another_was_given(profile, outcome):
    """A was given the newest binding, B's. Where it can be withdrawn, stage 2 loses its page."""
    backend, session = _session(profile, f"coerced:revision={profile.removeprefix('series-')}")
    before = backend.snapshot()
    with session:
        a, _b = session.attach_and_deliver()
        assert a.outcome is Outcome.DELIVERED
        assert a.programmed == GIOVA_B + 0x40
        session.detach(PciAddress.parse(B))
        assert session.deliver(a.device).outcome is outcome
    assert backend.snapshot() == before


def test_a_refused_device_leaves_the_giova_that_another_was_given():
    """B, on another pITS, gets no address; B's page stays mapped as A is programmed with it."""
    backend, session = _session("linux-7.2-bind", "coerced:revision=v2", pits=2)
    before = backend.snapshot()
    with session:
        a, b = session.attach_and_deliver()
        assert a.programmed == GIOVA_B + 0x40
        assert (a.outcome, b.outcome) == (Outcome.DELIVERED, Outcome.REFUSED)
    assert backend.snapshot() == before
