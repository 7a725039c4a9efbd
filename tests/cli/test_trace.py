"""``vmm-msi compare --trace``: the path of one MSI, place by place."""

from __future__ import annotations

import pytest
from scenarios import pair

from vmm_msi import samples
from vmm_msi.engine.compare import Result
from vmm_msi.host.scenario import parse_scenario
from vmm_msi.report.chain import Passage, Place, stations
from vmm_msi.types import Costs, Iova, Outcome, TraceStep, Verdict

TWO_ITS = samples.path("two-its.toml")
SLOT = """\
     |           the n-th doorbell page that an iommufd file uses gets the n-th
     |           page of its MSI window (iommufd_sw_msi_get_map,
     |           drivers/iommu/iommufd/driver.c)
     |
"""


@pytest.fixture
def columns():
    return 80


PATHS = {
    ("identity", "0000:02:00.0:3"): f"""\
identity on linux-7.2: 0000:02:00.0, vector 3: delivered

  device       0000:02:00.0 writes EventID 3 to 0x8001040, of 0x8000040 or
               0x8001040
{SLOT}\
  stage 1      s1b: 0x8001040 -> 0x8001040
     |           the guest maps the range of an RMR node 1:1 in the device's
     |           IOMMU domain (iommu_create_device_direct_mappings,
     |           drivers/iommu/iommu.c, in the guest)
     |
  stage 2      0x8001040 -> 0x200050040
     |           a slot is mapped to its doorbell page once in each table,
     |           without the IOAS (iommufd_sw_msi_install,
     |           drivers/iommu/iommufd/driver.c)
     |
  doorbell     ITS 1: 0x200050040
     |
  interrupt    ITS 1: DeviceID 0x200, EventID 3 -> LPI 8199
""",
    ("host-cookie", "0000:01:00.0"): f"""\
host-cookie on linux-7.2: 0000:01:00.0, vector 0: s1-fault

  device       0000:01:00.0 writes EventID 0 to 0x8000040, of 0x8000040 or
               0x8001040
{SLOT}\
  stage 1    x s1a: 0x8000040 -> no translation
                 F_TRANSLATION (stage 1) StreamID 0x100, IOVA 0x8000040
                 an address that stage 1 does not map faults (Arm SMMUv3
                 specification (IHI 0070), 7.3 F_TRANSLATION of stage 1)
  stage 2      not reached
  doorbell     not reached
  interrupt    not reached
""",
    ("direct", "0000:02:00.0:1"): """\
direct on linux-7.2-bind: 0000:02:00.0, vector 1: refused

  device     x 0000:02:00.0 has no MSI address
                 binding doorbell 0x8090000 of 0000:02:00.0 to ITS 1: conflict,
                 0000:01:00.0 has it bound to ITS 0 in the same stage 2; use a
                 stage 2 per ITS (multi-its:mode=s2), or give the guest a
                 virtual ITS per physical ITS
                 the strategy itself refuses what it cannot serve, for the
                 reason above (strategy direct)
  stage 1      not reached
  stage 2      not reached
  doorbell     not reached
  interrupt    not reached
""",
    ("preset", "0000:02:00.0"): """\
preset on linux-vfio-msi-iova: 0000:02:00.0, vector 0: misrouted

  device       0000:02:00.0 writes EventID 0 to 0xffffe040
     |           the gIOVA that the guest gave it
     |           VFIO writes the address that the VMM preset for the vector
     |           (iommufd_sw_msi, [PATCH RFC v2] of 2025-01-10, patch 11)
     |
  stage 1      s1b: 0xffffe040 -> 0x8090040
     |           the guest maps its gIOVA to the doorbell that it sees, in the
     |           device's IOMMU domain (iommu_dma_get_msi_page,
     |           drivers/iommu/dma-iommu.c, in the guest)
     |
  stage 2      0x8090040 -> 0x200010040
     |           a slot is mapped to its doorbell page once in each table,
     |           without the IOAS (iommufd_sw_msi_install,
     |           drivers/iommu/iommufd/driver.c)
     |
  doorbell     ITS 0: 0x200010040
     |
  interrupt  x ITS 0: DeviceID 0x200, EventID 0
                 ITS 0 does not know DeviceID 0x200
                 an ITS drops an MSI whose DeviceID or EventID its tables do not
                 have (Arm GICv3 specification (IHI 0069), 5 The ITS)
""",
}


@pytest.mark.parametrize(("strategy", "traced"), PATHS)
def test_path(vmm_msi, strategy, traced):
    words = ("--scenario", TWO_ITS, "--strategy", strategy, "--trace", traced)
    assert vmm_msi("compare", *words) == (0, PATHS[strategy, traced], "")


def test_each_strategy_has_a_path(vmm_msi):
    code, out, err = vmm_msi("compare", "--scenario", TWO_ITS, "--trace", "0000:01:00.0")
    assert (code, err) == (0, "")
    assert out.count("0000:01:00.0, vector 0: ") == 15
    assert max(map(len, out.splitlines())) <= 80


def test_an_address_of_another_device_is_named(vmm_msi, tmp_path):
    """What the review of 2018 feared: B has A's gIOVA."""
    path = tmp_path / "own.toml"
    path.write_text(pair("own").toml())
    words = ("--strategy", "coerced:revision=v2", "--trace", "0000:02:00.0")
    _code, out, _err = vmm_msi("compare", "--scenario", path, *words)
    assert "the gIOVA of 0000:01:00.0: the kernel took that device's\n" in out
    assert "\n  stage 1    x " in out


def test_a_kernel_without_iommufd_allocates_the_address(vmm_msi):
    words = ("--strategy", "host-cookie:profile=pre-series", "--trace", "0000:01:00.0")
    _code, out, _err = vmm_msi("compare", "--scenario", TWO_ITS, *words)
    assert "a doorbell page gets the next IOVA of the MSI cookie of its" in out
    assert "(iommu_dma_get_msi_page,\n" in out


def passages(outcome, *steps):
    guest = parse_scenario(pair("own").toml(), "test").guest
    device = guest.devices[0]
    trace = (TraceStep("programmed", {"iova": "0x8000040"}), *steps)
    verdict = Verdict(device.host, 0, 1, outcome, 0, 0, Iova(0x800_0040), trace=trace)
    result = Result("identity", {"profile": "linux-7.2"}, (verdict,), Costs())
    return {s.place: s.passage for s in stations(result, verdict, guest, 0)}


def test_a_real_kernel_does_not_show_every_place():
    """An interrupt that came has passed them all."""
    step = TraceStep("its", {"its": 0, "interrupt": "eventfd"})
    assert set(passages(Outcome.DELIVERED, step).values()) == {Passage.PASSED}


def test_a_stage_2_fault_on_a_table_of_stage_1():
    values = {"stage1": "s1a", "iova": "0x8000040", "fault": "F_TRANSLATION"}
    assert passages(Outcome.S2_FAULT, TraceStep("s2", values)) == {
        Place.DEVICE: Passage.PASSED,
        Place.STAGE_1: Passage.PASSED,
        Place.STAGE_2: Passage.BROKEN,
        Place.DOORBELL: Passage.NOT_REACHED,
        Place.INTERRUPT: Passage.NOT_REACHED,
    }


def test_an_address_that_is_no_doorbell_breaks_there():
    steps = (
        TraceStep("s1", {"stage1": "s1a", "iova": "0x8000040", "ipa": "0x1000"}),
        TraceStep("s2", {"s2": 1, "ipa": "0x1000", "pa": "0x2000"}),
    )
    passage = passages(Outcome.MISROUTED, *steps)
    assert (passage[Place.STAGE_2], passage[Place.DOORBELL]) == (Passage.PASSED, Passage.BROKEN)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trace", "0000:05:00.0"], "no such device; valid: 0000:01:00.0, 0000:02:00.0"),
        (["--trace", "0000:02:00.0:9"], "--trace 0000:02:00.0:9: its vectors are 0 to 3"),
        (["--trace", "0000:02:00.0:x"], "use a form such as 0000:01:00.0 or 0000:01:00.0:3"),
        (["--trace", "0000:02:00.0", "--format", "json"], "it has the path of every MSI without"),
    ],
)
def test_bad_traces(vmm_msi, words, message):
    code, out, err = vmm_msi("compare", "--scenario", TWO_ITS, *words)
    assert (code, out) == (2, "")
    assert message in err


def test_a_trace_of_no_address(vmm_msi):
    code, out, err = vmm_msi("compare", "--scenario", TWO_ITS, "--trace", "02")
    assert (code, out) == (3, "")
    assert "PCI address '02': not of the form 0000:01:00.0" in err
