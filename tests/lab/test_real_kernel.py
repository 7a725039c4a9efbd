"""Strategies on the real kernel of the emulated host, all in one boot."""

from __future__ import annotations

import errno
import json
import re

import pytest
from host_shell import GUEST, driver_of, shell
from scenarios import A, B, Device, Sample, guest_run, pair
from test_truth_table import (
    COLUMN_OF,
    IN_SERIES,
    PROPOSED,
    SERIES_TABLE,
    STRATEGIES,
    TABLE,
    by_device,
)

from vmm_msi.config import Choice
from vmm_msi.engine import compare as comparing
from vmm_msi.errors import BackendError, LabError, RefusedError, UsageError
from vmm_msi.explain.explainer import explain
from vmm_msi.explain.log_context import LogContext
from vmm_msi.host.scenario import load_scenario
from vmm_msi.iommu.backend import MsiAllocator
from vmm_msi.iommu.linux.abilities import Doorbells
from vmm_msi.iommu.profiles import profile_named
from vmm_msi.lab.backend import device_roles
from vmm_msi.lab.backend.remote import RemoteBackend
from vmm_msi.lab.rpc.link import AgentLink
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.types import Iova, Ipa, Outcome, PciAddress

pytestmark = pytest.mark.lab_root

#: A virtual ITS with its doorbell page at the first slot of the MSI window.
PLACED = {0: 0x07FF_0000, 1: 0x080A_0000}


@pytest.fixture
def link(lab_host):
    with AgentLink(lab_host.agent_socket) as link:
        link.call("hello")
        yield link


@pytest.fixture
def load(tmp_path):
    def load(sample, old="", new=""):
        path = tmp_path / "scenario.toml"
        path.write_text(sample.toml().replace(old, new) if old else sample.toml())
        return load_scenario(path)

    return load


@pytest.fixture
def opener(link):
    """Return a function that returns an opener of backends for a receiver of MSIs."""

    def opener(doorbells, others=()):
        """``others`` has addresses of stand-ins for the guest's first devices."""

        def open_backend(scenario, profile):
            stand_ins = device_roles.assign(scenario, link.call("devices"))
            stand_ins |= zip(stand_ins, map(PciAddress.parse, others), strict=False)
            return RemoteBackend(link, scenario.host, scenario.guest, doorbells, profile, stand_ins)

        return open_backend

    return opener


@pytest.fixture
def run(opener):
    plugins = PluginManager.load()

    def run(scenario, *names, doorbells=Doorbells.WITNESS):
        choices = [Choice.parse(name) for name in names]
        return list(
            comparing.compare(plugins, scenario, choices, "first-in-group", opener(doorbells))
        )

    return run


def outcomes(result):
    return {str(verdict.device): verdict.outcome.value for verdict in result.verdicts}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, row[:4])))
def test_row_of_the_truth_table(row, load, run):
    pits, mode, vits, order, cells = row
    scenario = load(pair(mode, pits=pits, vits=vits, order=order))
    columns = {name: column for name, column in STRATEGIES.items() if name not in PROPOSED}
    results = run(scenario, *columns)
    simulated = list(
        comparing.compare(
            PluginManager.load(), scenario, map(Choice.parse, columns), "first-in-group"
        )
    )
    for (name, column), real, other in zip(columns.items(), results, simulated, strict=True):
        expected = (cell.split()[0] for cell in cells[column])
        assert outcomes(real) == dict(zip((A, B), expected, strict=True)), name
        for actual, expect in zip(real.verdicts, other.verdicts, strict=True):
            assert actual.programmed == expect.programmed, name
            assert actual.its == expect.its, name
            numbers = (expect.errno, expect.errno_inside)
            assert (actual.errno, actual.errno_inside) == numbers, name
        assert real.costs == other.costs, name


@pytest.mark.parametrize("doorbells", Doorbells)
def test_proposed_calls_are_refused_by_name(doorbells, load, run):
    for result in run(load(pair("own")), *PROPOSED, doorbells=doorbells):
        assert outcomes(result) == {A: "refused", B: "refused"}
        for verdict in result.verdicts:
            assert "lacks " in verdict.reason
            assert verdict.reason.endswith("; use --backend sim")


@pytest.mark.parametrize("row", SERIES_TABLE, ids=lambda row: "-".join(map(str, row[:3])))
def test_row_of_the_series(row, load, run):
    """Each IOMMU domain of a container is a nest parent of the running kernel."""
    pits, mode, vits, cells = row
    scenario = load(pair(mode, pits=pits, vits=vits, containers="stage1"))
    results = run(scenario, *IN_SERIES)
    simulated = list(
        comparing.compare(
            PluginManager.load(), scenario, map(Choice.parse, IN_SERIES), "first-in-group"
        )
    )
    for (number, column), real, other in zip(COLUMN_OF.items(), results, simulated, strict=True):
        assert outcomes(real) == dict(zip((A, B), cells[column], strict=True)), number
        assert [v.its for v in real.verdicts] == [v.its for v in other.verdicts], number
        assert real.costs == other.costs, number


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, row[:4])))
def test_a_guest_that_ignores_the_rmr(row, load, run):
    pits, mode, vits, order = row[:4]
    (result,) = run(
        load(pair(mode, pits=pits, vits=vits, order=order, honours_rmr=False)), "identity"
    )
    assert outcomes(result) == {A: "s1-fault", B: "s1-fault"}
    assert all("F_TRANSLATION (stage 1)" in verdict.reason for verdict in result.verdicts)


def one_vector(sample):
    return sample, "vectors = 2", "vectors = 1"


def test_the_real_its_with_identity_and_with_the_host_cookie(load, run):
    scenario = load(*one_vector(pair("own")))
    cookie, identity = run(scenario, "host-cookie", "identity", doorbells=Doorbells.ITS)
    assert outcomes(cookie) == {A: "s1-fault", B: "s1-fault"}
    assert {verdict.programmed for verdict in cookie.verdicts} == {0x0800_0040}
    assert outcomes(identity) == {A: "delivered", B: "delivered"}
    assert identity.verdicts[0].trace[-1].values["interrupt"] == "eventfd"


def test_the_real_its_with_the_guests_own_giova_of_a_placed_doorbell(load, run):
    scenario = load(*one_vector(pair("own")))
    (result,) = run(scenario, "placed", doorbells=Doorbells.ITS)
    assert outcomes(result) == {A: "refused", B: "refused"}
    assert "put the virtual ITS at 0x7ff0000" in result.verdicts[0].reason
    sample = Sample(pair("own").devices, vits_bases=PLACED)
    (result,) = run(load(*one_vector(sample)), "placed", doorbells=Doorbells.ITS)
    assert outcomes(result) == {A: "delivered", B: "delivered"}
    assert [verdict.programmed for verdict in result.verdicts] == [0xFFFF_F040, 0xFFFF_E040]


def test_a_reset_and_not_the_affinity_restores_the_kernels_address(load, opener, lab_host):
    sample = Sample((Device(A, vectors=1),), vits_bases=PLACED)
    scenario = load(sample)
    backend = opener(Doorbells.ITS)(scenario, profile_named("linux-7.2"))
    device = PciAddress.parse(A)
    run = guest_run(scenario, backend, "placed")
    run.attach_all()
    assert run.deliver(device).outcome is Outcome.DELIVERED
    interrupts = "grep vfio-msi /proc/interrupts | cut -d: -f1"
    for cpu in (1, 2):
        shell(lab_host, f"for i in $({interrupts}); do echo {cpu} >/proc/irq/$i/smp_affinity; done")
        assert run.deliver(device).outcome is Outcome.DELIVERED
    listed = shell(lab_host, "grep vfio-msi /proc/interrupts")
    address = re.search(r"vfio-msi\[0\]\((0000:\S+)\)", listed)[1]
    shell(lab_host, f"echo 1 >/sys/bus/pci/devices/{address}/reset")
    verdict = run.deliver(device)
    assert verdict.outcome is Outcome.S1_FAULT
    assert "IOVA 0x8000040" in verdict.reason
    run.prepare(device)
    assert run.deliver(device).outcome is Outcome.DELIVERED
    run.detach_all()
    backend.close()


def test_a_missing_kernel_interface_is_refused_by_name(load, run, link):
    release = link.call("hello")["release"]
    scenario = load(*one_vector(pair("own")))
    results = run(scenario, "direct", "coerced", "multi-its", doorbells=Doorbells.ITS)
    for result, missing in zip(
        results, ("doorbell-map", "guest-binding-v15", "doorbell-map"), strict=True
    ):
        assert outcomes(result) == {A: "refused", B: "refused"}
        reason = result.verdicts[0].reason
        assert release in reason
        assert f"lacks {missing}" in reason
        assert "--doorbells witness" in reason


def test_iommufds_rules_refuse_direct_in_the_window(load, run):
    (result,) = run(load(pair("own")), "direct:profile=linux-7.2")
    assert outcomes(result) == {A: "refused", B: "refused"}
    assert result.verdicts[0].errno == 22
    sample = Sample(pair("own").devices, vits_bases={0: 0x0A08_0000, 1: 0x0A0A_0000})
    (result,) = run(load(sample), "direct:profile=linux-7.2")
    assert outcomes(result) == {A: "delivered", B: "delivered"}


def test_each_of_many_vectors_arrives_with_its_own_event(load, run):
    sample = Sample((Device(A, vectors=40), Device(B, its=1, vectors=7)))
    (result,) = run(load(sample), "multi-its")
    assert outcomes(result) == {A: "delivered", B: "delivered"}
    assert [verdict.trace[-1].values["data"] for verdict in result.verdicts] == [39, 6]


def test_two_smmus_and_a_group_of_two(load, run):
    devices = (
        Device("0000:01:00.0", smmu=0, group=7),
        Device("0000:01:00.1", smmu=0, group=7),
        Device("0000:02:00.0", smmu=1, its=1, stage1="s1b"),
    )
    for result in run(load(Sample(devices)), "multi-its", "identity"):
        assert set(outcomes(result).values()) == {"delivered"}, result.verdicts
        assert result.costs.s2_domains == 2


@pytest.mark.parametrize("granule", ["4K", "16K", "64K"])
def test_stage_1_tables_of_every_granule(granule, load, run):
    sample = Sample(
        (Device(A, giova=0xFFFF_0000),), s1_granule=granule, vits_bases={0: 0x0908_0000}
    )
    for result in run(load(sample), "direct", "identity"):
        assert outcomes(result) == {A: "delivered"}


def test_the_kernels_log_reports_a_stage_2_fault(load, opener):
    scenario = load(pair("own"))
    backend = opener(Doorbells.WITNESS)(scenario, profile_named("series-v15"))
    device = PciAddress.parse(A)
    asked = backend.alloc_s2(0, allocator=MsiAllocator.CALLER)
    s2 = backend.attach(device, asked)
    backend.program_msi(device, Iova(0xFFFF_F000))
    verdict = backend.deliver(device)
    assert verdict.outcome is Outcome.S2_FAULT
    assert "F_TRANSLATION (stage 2)" in verdict.reason
    backend.map_doorbell(s2, Ipa(0x0809_0000), 0)
    assert backend.deliver(device).outcome is Outcome.DELIVERED
    backend.unmap_doorbell(s2, Ipa(0x0809_0000))
    assert backend.deliver(device).outcome is Outcome.S2_FAULT
    with pytest.raises(BackendError, match="EBUSY"):
        backend.free_s2(asked)
    backend.close()


def test_the_kernels_own_log_is_explained(load, opener, link, lab_host):
    """The words of the event and the lines after them, as this kernel's driver logs them."""
    scenario = load(pair("own", vits_bases={0: 0x0908_0000}))
    backend = opener(Doorbells.WITNESS)(scenario, profile_named("series-v15"))
    device = PciAddress.parse(A)
    backend.attach(device, backend.alloc_s2(0, allocator=MsiAllocator.CALLER))
    backend.program_msi(device, Iova(0xFFFF_F000))
    shell(lab_host, "dmesg -c >/dev/null")
    verdict = backend.deliver(device)
    backend.close()
    lines = [line for line in shell(lab_host, "dmesg").splitlines() if "smmu" in line]
    context = LogContext(scenario.host, scenario.guest)
    (dumped,) = explain("\n".join(lines), context).lines
    (alone,) = explain("\n".join(line for line in lines if "\t" not in line), context).lines
    for explanation in (dumped.explanation, alone.explanation):
        stand_in = device_roles.assign(scenario, link.call("devices"))[device]
        assert [device.address for device in explanation.devices] == [stand_in]
        assert (explanation.id, explanation.stage) == ("smmu-F_TRANSLATION", 2)
        assert explanation.iova == verdict.programmed == 0xFFFF_F040
        assert explanation.ipa == 0x0909_0040
        assert explanation.missing.startswith("S2: 0x9090000 (gDB) -> ")


def test_a_detach_restores_the_state(load, opener):
    scenario = load(pair("own", pits=2))
    backend = opener(Doorbells.WITNESS)(scenario, profile_named("series-v15"))
    before = backend.snapshot()
    run = guest_run(scenario, backend, "multi-its")
    for _ in range(3):
        run.attach_all()
        assert backend.snapshot() != before
        run.detach_all()
        assert backend.snapshot() == before
    backend.close()


def test_a_device_with_another_driver_is_refused(load, link, opener):
    scenario = load(pair("own"))
    port = next(d for d in link.call("devices") if d["vendor"] == 0x1B36)
    opened = opener(Doorbells.ITS, [port["address"]])
    with pytest.raises(BackendError, match="the driver pcieport has it") as error:
        opened(scenario, profile_named("linux-7.2"))
    assert error.value.errno == 16


@pytest.fixture
def bare(link, lab_host):
    """Return a test device without driver, with a foreign driver_override."""
    address = next(d["address"] for d in link.call("devices") if d["vendor"] == 0x1234)
    if driver_of(lab_host, address)[0]:
        shell(lab_host, f"echo {address} >/sys/bus/pci/drivers/vfio-pci/unbind")
    shell(lab_host, f"echo foreign >/sys/bus/pci/devices/{address}/driver_override")
    assert driver_of(lab_host, address) == ("", "foreign")
    yield address
    shell(lab_host, f"echo >/sys/bus/pci/devices/{address}/driver_override")
    assert driver_of(lab_host, address) == ("", "(null)")


def test_a_device_without_driver_has_none_afterwards(load, opener, lab_host, bare):
    scenario = load(Sample((Device(A, vectors=1),)))
    backend = opener(Doorbells.ITS, [bare])(scenario, profile_named("linux-7.2"))
    assert driver_of(lab_host, bare) == ("vfio-pci", "vfio-pci")
    backend.attach(PciAddress.parse(A), backend.alloc_s2(0))
    backend.prepare_msi(PciAddress.parse(A))
    backend.close()
    assert driver_of(lab_host, bare) == ("", "foreign")


def test_no_device_is_changed_if_another_driver_has_one(load, link, opener, lab_host, bare):
    scenario = load(pair("own"))
    port = next(d for d in link.call("devices") if d["vendor"] == 0x1B36)
    opened = opener(Doorbells.ITS, [bare, port["address"]])
    with pytest.raises(BackendError, match="the driver pcieport has it"):
        opened(scenario, profile_named("linux-7.2"))
    assert driver_of(lab_host, bare) == ("", "foreign")


def test_unknown_events_are_ignored(load, opener, lab_host):
    scenario = load(Sample((Device(A, vectors=1),)))
    backend = opener(Doorbells.ITS)(scenario, profile_named("linux-7.2"))
    backend.attach(PciAddress.parse(A), backend.alloc_s2(0))
    backend.prepare_msi(PciAddress.parse(A))
    smmu = "arm-smmu-v3 arm-smmu-v3.0.auto:"
    words = " ".join(["0x00000000000000e0", *["0x0000000000000000"] * 3])
    shell(lab_host, f"echo '{smmu} event 0xe0 received:' >/dev/kmsg")
    shell(lab_host, f"for w in {words}; do printf '{smmu} \\t%s\\n' $w >/dev/kmsg; done")
    assert backend.deliver(PciAddress.parse(A)).outcome is Outcome.S1_FAULT
    backend.close()


@pytest.mark.parametrize("doorbells", Doorbells)
def test_a_device_that_is_not_attached_keeps_its_event(load, opener, doorbells):
    """The backend returns the kernel's errors without the call, which would lose the event."""
    scenario = load(Sample((Device(A, vectors=1),)))
    backend = opener(doorbells)(scenario, profile_named("linux-7.2"))
    device = PciAddress.parse(A)
    for call in (backend.prepare_msi, lambda a: backend.program_msi(a, Iova(0xFFFF_F000))):
        with pytest.raises(BackendError, match="not attached") as refusal:
            call(device)
        assert refusal.value.errno == errno.ENOSPC
        assert refusal.value.inside == errno.EOPNOTSUPP
    backend.attach(device, backend.alloc_s2(0))
    backend.prepare_msi(device)
    backend.close()


def test_with_the_real_its_a_verdict_covers_the_first_msi_only(load, opener):
    scenario = load(Sample((Device(A, vectors=4),)))
    backend = opener(Doorbells.ITS)(scenario, profile_named("linux-7.2"))
    backend.attach(PciAddress.parse(A), backend.alloc_s2(0))
    backend.prepare_msi(PciAddress.parse(A))
    assert backend.deliver(PciAddress.parse(A)).count == 1
    backend.close()


def test_scenarios_beyond_the_emulated_host_are_refused(load, link):
    with pytest.raises(UsageError, match="pages of 16K are not supported"):
        device_roles.check(load(Sample((Device(A),), granule="16K")), own_its=False)
    crowd = Sample(tuple(Device(f"0000:{bus:02x}:00.0") for bus in range(1, 30)))
    with pytest.raises(LabError, match="--devices N"):
        device_roles.assign(load(crowd), link.call("devices"))


def test_the_command_on_the_host_itself(link, lab_host, bare):
    """The command of a user of real Arm hardware, with the host's own tables and devices."""
    device = next(d for d in link.call("devices") if d["address"] == bare)
    bus = PciAddress.parse(device["address"]).bus
    words = ["--backend", "iommufd", "--host", "/sys/firmware/acpi/tables", "--format", "json"]
    answer = link.call(
        "command",
        argv=["compare", "--guest", "guest.xml", *words],
        files={"guest.xml": GUEST.format(bus=bus)},
        timeout_s=120,
    )
    assert answer["status"] == 0, answer["stderr"]
    results = json.loads(answer["stdout"])["results"]
    outcomes_of = {result["strategy"]: by_device(result) for result in results}
    assert outcomes_of["identity"] == {device["address"]: "delivered"}
    assert outcomes_of["host-cookie"] == {device["address"]: "s1-fault"}
    assert outcomes_of["direct"] == {device["address"]: "refused"}
    assert driver_of(lab_host, bare) == ("", "foreign")


def test_the_command_refuses_a_device_without_a_trigger(link):
    port = next(d for d in link.call("devices") if d["vendor"] == 0x1B36)
    bus = PciAddress.parse(port["address"]).bus
    slot = port["address"][8:10]
    words = ["--backend", "iommufd", "--host", "/sys/firmware/acpi/tables"]
    answer = link.call(
        "command",
        argv=["compare", "--guest", "guest.xml", *words],
        files={"guest.xml": GUEST.format(bus=bus).replace("slot='0x00'", f"slot='0x{slot}'")},
        timeout_s=120,
    )
    assert answer["status"] == 5
    assert "EOPNOTSUPP: " in answer["stderr"]
    assert "send an MSI is not known; use one of 1234:11e8 or an NVMe" in answer["stderr"]


def test_the_agent_keeps_working_after_invalid_requests(link):
    for do, given in (
        ("open", {}),
        ("open", {"host": 3, "guest": [], "doorbells": "its", "profile": "linux-7.2"}),
        ("call", {"method": "free_s2", "arguments": {"s2": 1}}),
        ("call", {"method": "close", "arguments": {}}),
        ("conform", {"devices": [], "scenarios": [{"steps": 3}]}),
        ("command", {"argv": [3]}),
        ("nothing", {}),
    ):
        with pytest.raises((LabError, RefusedError)):
            link.call(do, **given)
    assert link.call("hello")["version"] == 1
