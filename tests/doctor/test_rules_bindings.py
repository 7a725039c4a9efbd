"""Findings about the kernel's interface for guest MSI bindings."""

from dataclasses import replace

import pytest
from doctor.cases import A2, HEALTHY, HOST, A, B, host_device, with_host
from doctor.guest_cases import GUEST, PLUGINS, case_of, ids, only, rendered
from host.host_files import HostFiles

from vmm_msi.config import Choice, Config
from vmm_msi.doctor.finding import Severity
from vmm_msi.domxml.support import newest
from vmm_msi.errors import FindingsError, RefusedError
from vmm_msi.host.msi_bindings import PATH
from vmm_msi.provision import AttachRequest, definition_file
from vmm_msi.types import BinderKind, Granule, Its, Pa, ReservedKind, ReservedRegion

BINDS = replace(HOST, msi_bindings=1)
NEWER = replace(HOST, msi_bindings=2)
STRATEGIES = ["direct", "coerced", "coerced:revision=v2", "multi-its", "multi-its:mode=vits"]


def bound(host=BINDS):
    return replace(HEALTHY, host=host)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_kernel_with_the_interface_carries_the_strategies(strategy):
    xml = rendered(A, strategy=strategy, host=BINDS)
    assert 'backend="kernel"' in str(xml)
    for case in (
        case_of(xml, base=bound()),
        case_of(rendered(A), base=bound(), choice=Choice.parse(strategy)),
    ):
        assert not [name for name in ids(case) if name.startswith(("error", "warning"))]


@pytest.mark.parametrize("strategy", ["host-cookie", "window", "coerced:profile=series-v2"])
def test_it_does_not_carry_other_strategies(strategy):
    case = case_of(rendered(A), base=bound(), choice=Choice.parse(strategy))
    finding = only(case, "strategy-not-carried")
    assert len(finding.evidence) == 1
    assert "interface" not in finding.consequence


def test_identity_stays_with_qemu_where_the_kernel_binds():
    assert 'backend="qemu"' in str(rendered(A, host=BINDS))
    assert 'backend="sim"' in str(rendered(A, strategy="direct", kind="test", host=BINDS))


def test_without_the_interface_it_is_named():
    finding = only(case_of(rendered(A), choice=Choice("direct")), "strategy-not-carried")
    assert str(finding.evidence[1]) == f"{PATH}: missing"
    assert f"no interface for guest MSI bindings ({PATH})" in finding.consequence
    assert finding.remedy.endswith("; or boot a kernel with that interface.")


def test_only_root_sees_the_interface():
    files = HostFiles()
    files.unreadable[str(PATH)] = "Permission denied"
    case = replace(case_of(rendered(A), choice=Choice("direct")), tree=files.tree())
    finding = only(case, "strategy-not-carried")
    assert finding.evidence[1].what == "Permission denied"
    assert "unknown to this user: Permission denied; root can read it" in finding.consequence


def test_an_unknown_version():
    case = case_of(rendered(A), base=bound(NEWER), choice=Choice("direct"))
    finding = only(case, "msi-bindings-version")
    assert (finding.severity, finding.subject) == (Severity.WARNING, "host")
    assert str(finding.evidence[0]) == f"{PATH}: version 2"
    assert "version 2" in only(case, "strategy-not-carried").consequence
    with pytest.raises(RefusedError, match="version 2 of its interface"):
        rendered(A, strategy="direct", host=NEWER)


def test_two_allocators_in_one_stage_2():

    def attached(device, strategy, **request):
        first = rendered(A, strategy="direct", host=BINDS)
        choice = Choice.parse(strategy)
        attach = AttachRequest(GUEST, (device,), choice, BinderKind.QEMU, **request)
        return definition_file.plan_attach(first, newest(), PLUGINS, Config(), BINDS, attach).new

    with pytest.raises(FindingsError, match="msi-bindings-mixed"):
        attached(A2, "coerced")
    case = case_of(attached(A2, "coerced", allow_faults=True), base=bound())
    finding = only(case, "msi-bindings-mixed")
    assert [str(evidence) for evidence in finding.evidence] == [
        f"strategy direct of {A}: allocator direct",
        f"strategy coerced of {A2}: allocator list-one-granule",
    ]
    assert "(EBUSY)" in finding.consequence
    # Another SMMU has a stage 2 of its own; identity needs no allocator.
    for device, strategy in ((B, "coerced"), (A2, "identity"), (A2, "multi-its")):
        fine = case_of(attached(device, strategy), base=bound())
        assert "error msi-bindings-mixed" not in ids(fine)


def test_a_doorbell_that_is_a_slot():
    """With 64K pages gDB 0x8090000 is slot 9, which the tenth ITS gets."""
    window = ReservedRegion(0x8000000, 0x100000, ReservedKind.SW_MSI)
    itses = tuple(Its(number, Pa(0x20000000 + 0x20000 * number)) for number in range(10))
    addresses = [replace(A, bus=number + 1) for number in range(10)]
    devices = tuple(
        replace(host_device(address, its=(number,), group=20 + number), reserved=(window,))
        for number, address in enumerate(addresses)
    )
    host = replace(
        BINDS, granule=Granule.K64, itses=itses, devices=devices, functions=(), msi_bindings=1
    )
    case = case_of(
        rendered(B), base=bound(host), devices=tuple(addresses), choice=Choice("multi-its")
    )
    finding = only(case, "msi-bindings-slot")
    assert finding.severity is Severity.WARNING
    assert str(finding.evidence[0]) == "gDB of QEMU's virt board: 0x8090000 is slot 9"
    assert "if 10 ITSes are used by identity before" in finding.consequence
    fewer = replace(case, devices=tuple(addresses[:9]))
    assert "warning msi-bindings-slot" not in ids(fewer)
    small = with_host(case, granule=Granule.K4)
    assert "warning msi-bindings-slot" not in ids(small)


TWO_ITSES = replace(
    HOST, devices=(host_device(A), host_device(A2, its=(1,), group=11)), msi_bindings=1
)


def test_qemus_one_stage_2_takes_no_second_its():
    """In the simulator mode s2 has a stage 2 for each; on QEMU an iommufd object makes one."""
    with pytest.raises(
        (FindingsError, RefusedError),
        match=f"QEMU has one stage 2 for SMMU 0 .*{A} .* ITS 0, not ITS 1; use multi-its:mode=s2,",
    ):
        rendered(A, A2, strategy="multi-its", host=TWO_ITSES)
    xml = rendered(A, A2, strategy="multi-its:mode=s2,iommufd=each", host=TWO_ITSES)
    assert str(xml).count('backend="kernel"') == 2
    assert "vmm-msi-iommufd1" in str(xml)
