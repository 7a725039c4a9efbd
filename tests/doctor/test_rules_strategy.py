"""Findings about strategies, from the simulator."""

from dataclasses import replace

import pytest
from doctor.cases import A2, HOST, A, B, host_device, with_device, with_function, with_host
from doctor.guest_cases import GUEST, PLUGINS, case_of, changed, ids, only, rendered

from vmm_msi.config import Choice, Config, ConfigTable
from vmm_msi.doctor import rules_strategy
from vmm_msi.doctor.finding import Severity
from vmm_msi.domxml.template import nested_guest
from vmm_msi.iommu import rules
from vmm_msi.types import Granule, Its, Pa, PciAddress, ReservedKind, ReservedRegion

FAULT = "F_TRANSLATION (stage 1) StreamID 0x100, IOVA 0x8000040"
ONE, TWO = rendered(A), rendered(A, B)


def test_a_strategy_that_qemu_does_not_support():
    finding = only(case_of(ONE, choice=Choice("direct")), "strategy-not-carried")
    assert (finding.severity, finding.subject) == (Severity.ERROR, f"guest {GUEST}")
    assert str(finding.evidence[0]) == "--strategy: strategy direct"
    assert "Use identity or multi-its:mode=vsmmu, or --backend sim" in finding.remedy


def test_a_strategy_recorded_as_simulated():
    case = case_of(rendered(A, kind="test", strategy="direct"))
    assert "error strategy-not-carried" not in ids(case)
    assert "error msi-lost" not in ids(case)


def test_a_strategy_of_the_configuration():
    settings = Config(ConfigTable(strategy="host-cookie"))
    plain = nested_guest(GUEST, memory=1 << 30)
    case = case_of(plain, devices=(A,), config=settings)
    assert only(case, "strategy-not-carried").evidence[0].what == "strategy host-cookie"
    assert "error msi-lost" in ids(case)
    assert ids(case_of(plain, devices=(A,))) == []


def test_lost_msis():
    finding = only(case_of(ONE, choice=Choice("host-cookie")), "msi-lost")
    assert (finding.severity, finding.subject) == (Severity.ERROR, str(A))
    assert [str(evidence) for evidence in finding.evidence] == [
        f"simulated linux-7.2: {A}: s1-fault: {FAULT}",
        "path of the MSI, programmed: iova 0x8000040",
        f"path of the MSI, s1: stage1 s1-{A} iova 0x8000040 fault F_TRANSLATION",
        f"rule that decided: {rules.smmu_event('F_TRANSLATION', 1)}",
    ]
    assert finding.consequence == (
        f"With strategy host-cookie, none of the device's MSIs are delivered: s1-fault: {FAULT}."
    )
    assert finding.remedy.startswith(
        "Use a strategy that delivers here: identity, multi-its:mode=vsmmu, "
    )
    assert "direct (in no release)" in finding.remedy


def test_two_itses_behind_one_vsmmu():
    """One guest doorbell for two host doorbells: only direct has a conflict."""
    host = replace(HOST, devices=(host_device(A), host_device(A2, its=(1,), group=11)))
    case = with_host(case_of(rendered(A, A2, host=host)), devices=host.devices)
    finding = only(replace(case, choice=Choice("direct")), "msi-lost")
    assert finding.subject == str(A2)
    assert "conflict" in finding.evidence[0].what
    assert finding.remedy.startswith(
        "Use a strategy that delivers here: identity, multi-its:mode=vsmmu"
    )
    assert "direct" not in finding.remedy
    assert "error msi-lost" not in ids(case)


def test_a_guest_without_acpi():
    case = case_of(changed(ONE, ("<acpi/>", "")))
    finding = only(case, "msi-lost")
    assert "s1-fault" in finding.consequence


def test_without_a_guest_each_device_is_simulated_alone():
    case = replace(case_of(TWO, choice=Choice("host-cookie")), guest=None)
    finding = only(case, "msi-lost")
    assert finding.subject == f"{A} and 1 more"
    assert [evidence.what.partition(":")[0] for evidence in finding.evidence[:2]] == [
        "0000",
        "0001",
    ]


def test_devices_of_a_group_are_simulated_alone_too():
    case = replace(case_of(TWO), guest=None, devices=(A, A2))
    for address in (A, A2):
        case = with_device(with_function(case, address, iommu_group=10), address, iommu_group=10)
    assert [*rules_strategy.msi_lost(case)] == []


def test_address_ranges_do_not_share_a_group():
    """Representatives of unlisted devices are in group -1, but not in one group."""
    devices = tuple(replace(device, iommu_group=-1) for device in HOST.devices)
    case = replace(with_host(case_of(TWO), devices=devices, functions=()), guest=None)
    assert [*rules_strategy.msi_lost(case)] == []


def test_strategies_that_no_kernel_supports():
    settings = Config(ConfigTable(strategies={"identity": {"profile": "series-v8"}}))
    plain = nested_guest(GUEST, memory=1 << 30)
    finding = only(case_of(plain, devices=(A,), config=settings), "strategy-unusable")
    assert finding.severity is Severity.ERROR
    assert "lacks sw-msi;" in finding.consequence


@pytest.mark.parametrize(("base", "size"), [(0xA000_0000, 1 << 20), (0x800_0000, 1 << 21)])
def test_a_window_that_differs_from_the_rmr(base, size):
    window = ReservedRegion(base, size, ReservedKind.SW_MSI)
    case = with_function(case_of(rendered(A, memory=1 << 30)), A, reserved=(window,))
    finding = only(case, "rmr-fixed")
    assert (finding.severity, finding.subject) == (Severity.ERROR, str(A))
    assert finding.evidence[0].what == str(window)
    assert "error msi-lost" in ids(case)
    for strategy in ("direct", "window"):
        assert "error rmr-fixed" not in ids(replace(case, choice=Choice(strategy)))


def crowd(number, granule):
    """A host with ``number`` ITSes that have one device each."""
    itses = tuple(Its(n, Pa(0x3000_0000 + n * 0x20000)) for n in range(number))
    devices = tuple(
        host_device(PciAddress(0, n + 1, 0, 0), its=(n,), group=n) for n in range(number)
    )
    return replace(HOST, granule=granule, itses=itses, devices=devices, functions=())


@pytest.mark.parametrize(
    ("number", "granule", "message"),
    [
        (16, Granule.K64, None),
        (17, Granule.K64, "gets 0x8100000, which is outside the RMR"),
        (17, Granule.K16, None),
        (64, Granule.K4, None),
        (65, Granule.K4, "VFIO_DEVICE_SET_IRQS returns ENOSPC"),
    ],
)
def test_more_doorbells_than_the_window_has_pages(number, granule, message):
    host = crowd(number, granule)
    case = case_of(nested_guest(GUEST, memory=1 << 30), devices=[d.address for d in host.devices])
    case = replace(case, host=host)
    (finding,) = [*rules_strategy.window_full(case)] or [None]
    lost = [*rules_strategy.msi_lost(case)]
    if message is None:
        assert finding is None
        assert lost == []
    else:
        assert message in finding.consequence
        assert [finding.subject for finding in lost] == [str(host.devices[-1].address)]


@pytest.mark.parametrize(("number", "findings"), [(17, 0), (65, 1)])
def test_doorbells_of_a_strategy_without_the_rmr_of_qemu(number, findings):
    host = crowd(number, Granule.K64)
    devices = [device.address for device in host.devices]
    case = case_of(nested_guest(GUEST, memory=1 << 30), devices=devices)
    case = replace(case, host=host, choice=Choice("window"))
    assert len([*rules_strategy.window_full(case)]) == findings
    assert len([*rules_strategy.msi_lost(case)]) == findings


def test_the_order_of_slots():
    finding = only(case_of(TWO), "slot-order")
    assert finding.severity is Severity.NOTE
    assert [str(evidence) for evidence in finding.evidence] == [
        f"doorbell 0x30050000, ITS 0: 0x8000000 if {A} is number 1 to use one",
        f"doorbell 0x30070000, ITS 1: 0x8001000 if {B} is number 2 to use one",
    ]
    assert "note slot-order" not in ids(case_of(rendered(A, A2)))
    assert PLUGINS is case_of(TWO).plugins


def test_a_guest_that_ignores_the_rmr():
    """The finding shows in advance the address of the fault."""
    finding = only(case_of(ONE), "rmr-needed")
    assert (finding.severity, finding.subject) == (Severity.NOTE, f"guest {GUEST}")
    assert [str(evidence) for evidence in finding.evidence] == [
        f"simulated guest without the RMR: {A}: {FAULT}"
    ]
    assert "0x8000000-0x80fffff" in finding.consequence
    assert "note rmr-needed" not in ids(case_of(ONE, choice=Choice("direct")))
    assert "note rmr-needed" not in ids(case_of(changed(ONE, ("<acpi/>", ""))))


def test_vfio_inside_the_guest():
    """QEMU's RMR makes the window a direct region in the guest."""
    finding = only(case_of(TWO), "rmr-direct")
    assert (finding.severity, finding.subject) == (Severity.NOTE, f"guest {GUEST}")
    assert f"VFIO inside the guest is refused for {A} and {B} (EINVAL)" in finding.consequence
    assert {evidence.what for evidence in finding.evidence} == {"accel is 'on'"}
    for without in (("<acpi/>", ""), ("accel='on'", "accel='off'")):
        assert "note rmr-direct" not in ids(case_of(changed(ONE, without)))
