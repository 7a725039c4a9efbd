"""The simulator against another machine: wrong machines are found, and Linux agrees."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import binding_cases
import json_schemas
import pytest
from conftest import unavailable
from host_shell import run_script
from kernel_cases import CASES, HOST, CheckedCalls

from vmm_msi.cli import main
from vmm_msi.errors import BackendError, errno_name
from vmm_msi.iommu import call_sequence, call_sequence_json
from vmm_msi.iommu.sim.call_machine import SimMachine
from vmm_msi.lab.build.images import find_images
from vmm_msi.lab.build.kernel_flavour import kernel_name
from vmm_msi.lab.conformance import conform
from vmm_msi.lab.conformance.random_sequences import draw_sequences
from vmm_msi.lab.conformance.shrink import without
from vmm_msi.lab.machine.emulated_host import LabHost
from vmm_msi.lab.machine.shape import Shape
from vmm_msi.lab.rpc.link import AgentLink


def quiet(_done, _total):
    pass


@pytest.fixture
def simulator():
    return SimMachine(HOST, output_bits=conform.OUTPUT_BITS)


@pytest.fixture
def binding_simulator():
    """The simulator of a kernel with the interface for guest MSI bindings."""
    return SimMachine(HOST, output_bits=conform.OUTPUT_BITS, bindings=True)


#: The calls of that interface; the others are drawn for every kernel.
BINDING_CALLS = {op for op in call_sequence.OPS if "msi" in op} - {"raise_msi", "msi_address"}


def test_a_seed_draws_the_same_sequences(simulator):
    drawn = draw_sequences(simulator, 20, 1)
    assert drawn == draw_sequences(SimMachine(HOST, output_bits=44), 20, 1)
    assert drawn[:5] == draw_sequences(simulator, 5, 1)
    assert drawn != draw_sequences(simulator, 20, 2)


def test_two_hundred_sequences_cover_every_call_and_landing(simulator):
    """Every call is made and refused in several ways; none costs a device its ITS event."""
    drawn = draw_sequences(simulator, 200, 1)
    assert sum(len(sequence.steps) for sequence in drawn) >= 5000
    results, landings = set(), set()
    for sequence in drawn:
        assert call_sequence_json.check(sequence) is sequence
        for step, result in zip(
            sequence.steps, call_sequence.run(simulator, sequence), strict=True
        ):
            results.add((step.op, result.errno))
            if result.landing is not None:
                landings.add(result.landing.kind)
    assert not simulator.lost_events
    assert {op for op, errno in results if not errno} == set(call_sequence.OPS) - BINDING_CALLS
    assert len(results) > 50
    assert landings == set(call_sequence.LandingKind)


def test_two_hundred_sequences_make_every_call_of_bindings(binding_simulator):
    drawn = draw_sequences(binding_simulator, 200, 1)
    results = set()
    for sequence in drawn:
        assert call_sequence_json.check(sequence) is sequence
        for step, result in zip(
            sequence.steps, call_sequence.run(binding_simulator, sequence), strict=True
        ):
            results.add((step.op, errno_name(result.errno) if result.errno else ""))
    assert not binding_simulator.lost_events
    assert {op for op, refusal in results if not refusal} == set(call_sequence.OPS)
    refusals = {
        "msi_bind": {"EINVAL", "EEXIST", "EADDRINUSE", "ENOENT"},
        "msi_unbind": {"ENOENT"},
        "msi_prepare": {"ENOENT", "EEXIST"},
        "msi_query": {"ENOENT"},
        "set_msi_binding": {"ENOENT", "EINVAL", "EOPNOTSUPP", "EBUSY"},
        "vdevice_msi": {"EOPNOTSUPP"},
    }
    for op, names in refusals.items():
        assert names <= {refusal for called, refusal in results if called == op}, op


def test_a_kernel_is_asked_whether_it_has_bindings(simulator, binding_simulator):
    assert not conform.has_bindings(conform.MachineSide(simulator))
    assert conform.has_bindings(conform.MachineSide(binding_simulator))


def test_equal_machines_have_no_mismatch(simulator):
    side = conform.MachineSide(SimMachine(HOST, output_bits=44))
    drawn = draw_sequences(simulator, 200, 1)
    progress = []
    report = conform.compare(simulator, side, drawn, lambda *counts: progress.append(counts))
    assert report.mismatches == []
    assert report.sequences == 200
    assert report.steps == sum(len(sequence.steps) for sequence in drawn)
    assert progress[-1] == (200, 200)


class ForgetsTheWindow(SimMachine):
    """A host that accepts mappings in reserved regions."""

    def ioas_map(self, fd, ioas, iova, size, page):
        try:
            super().ioas_map(fd, ioas, iova, size, page)
        except BackendError as error:
            if "reserved" not in error.reason:
                raise


class KeepsTheAddress(SimMachine):
    """A host that does not write the address when the MSI is enabled again."""

    def enable(self, device):
        enabled, previous = self.is_enabled(device), self._devices[device].address
        address = super().enable(device)
        if enabled:
            self._devices[device].address = previous
            return previous
        return address


class ReportsToTheHost(SimMachine):
    """A host that logs every fault."""

    def raise_msi(self, device):
        landing = super().raise_msi(device)
        if not landing.guest:
            return landing
        return call_sequence.Landing(landing.kind, event=landing.event)


class OtherErrno(SimMachine):
    """A host that refuses a missing vDEVICE with EINVAL."""

    def attach(self, device, pt_id):
        try:
            super().attach(device, pt_id)
        except BackendError as error:
            if "no vDEVICE" in error.reason:
                raise BackendError(22, error.reason) from error
            raise


class KeepsTheGiova(SimMachine):
    """A host that does not write the slot into a device whose vDEVICE is destroyed."""

    def destroy(self, fd, number):
        addresses = [device.address for device in self._devices]
        super().destroy(fd, number)
        for device, address in zip(self._devices, addresses, strict=True):
            device.address = address


class IgnoresTheFlags(SimMachine):
    """A host that never reports a binding in use."""

    def msi_query(self, fd, vdevice, index):
        return replace(super().msi_query(fd, vdevice, index), used=False)


@pytest.mark.parametrize(
    ("wrong", "op", "longest"),
    [(KeepsTheGiova, "msi_address", 20), (IgnoresTheFlags, "msi_query", 20)],
)
def test_a_wrong_kernel_with_bindings_has_a_mismatch(wrong, op, longest, binding_simulator):
    side = conform.MachineSide(wrong(HOST, output_bits=44, bindings=True))
    drawn = draw_sequences(binding_simulator, 300, 1)
    report = conform.compare(binding_simulator, side, drawn, quiet)
    first = next(m for m in report.mismatches if m.step.op == op)
    assert len(first.sequence.steps) <= longest
    document = json.loads(json.dumps(conform.to_json(report, 1)))
    json_schemas.check("lab-conform", document)
    text = list(conform.lines(first))
    assert text[-2] != text[-1]


@pytest.mark.parametrize(
    ("wrong", "op", "longest"),
    [
        (ForgetsTheWindow, "ioas_map", 6),
        (KeepsTheAddress, "enable", 44),
        (ReportsToTheHost, "raise_msi", 14),
        (OtherErrno, "attach", 9),
    ],
)
def test_a_wrong_machine_has_a_mismatch_that_is_shrunk(wrong, op, longest, simulator):
    side = conform.MachineSide(wrong(HOST, output_bits=44))
    report = conform.compare(simulator, side, draw_sequences(simulator, 100, 1), quiet)
    assert report.mismatches
    first = report.mismatches[0]
    assert first.step.op == op
    assert len(first.sequence.steps) <= longest
    whole = json.loads(json.dumps(conform.to_json(report, 1)))
    json_schemas.check("lab-conform", whole)
    document = whole["mismatches"][0]
    assert document["model"] != document["kernel"]
    again = call_sequence_json.sequence_from_json(document["shrunk"])
    assert conform.find_mismatch(simulator, side, again) is not None
    assert conform.find_mismatch(simulator, conform.MachineSide(simulator), again) is None
    text = list(conform.lines(first))
    assert text[-2].startswith("simulator: ")
    assert text[-1].startswith("kernel: ")
    assert f"#{len(first.sequence.steps) - 1} {first.step}" in text


def test_steps_are_removed_with_those_that_refer_to_them(simulator):
    calls = CheckedCalls(simulator)
    CASES["a_device_is_bound_once"](calls)
    sequence = calls.sequence()
    opened = next(n for n, step in enumerate(sequence.steps) if step.op == "open")
    rest = without(sequence, [opened])
    assert "open" in [step.op for step in rest.steps]
    assert len(rest.steps) == len(sequence.steps) - 3
    call_sequence_json.check(rest)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "valid: schema, stage1, steps"),
        (None, "No such"),
    ],
)
def test_another_file_is_refused(content, message, tmp_path, capsys):
    path = tmp_path / "sequence.json"
    if content is not None:
        path.write_bytes(content)
    assert main(["lab", "conform", "--replay", str(path)]) == 3
    error = capsys.readouterr().err
    assert str(path) in error
    assert message in error


def test_a_count_of_zero_is_refused(capsys):
    assert main(["lab", "conform", "--count", "0"]) == 2
    assert "valid is 1 to" in capsys.readouterr().err


@pytest.fixture
def kernel(lab_host):
    """A simulator of the emulated host, and its kernel as the other side."""
    with both_sides(lab_host) as sides:
        yield sides


@contextmanager
def both_sides(lab_host):
    with AgentLink(lab_host.agent_socket) as link:
        link.call("hello")
        host = conform.conform_host(lab_host.board.topology, link.call("devices"))
        side = conform.KernelSide(link, [device.address for device in host.devices])
        bindings = conform.has_bindings(side)
        yield SimMachine(host, output_bits=conform.OUTPUT_BITS, bindings=bindings), side


@pytest.fixture(scope="module")
def binding_host(lab_root, lab_images):
    """An emulated host whose kernel has the interface for guest MSI bindings."""
    kernel = kernel_name("bind")
    if find_images(kernel=kernel) is None:
        unavailable("no kernel of the lab with guest MSI bindings: run vmm-msi lab build")
    with LabHost(Shape(kernel=kernel)) as host:
        yield host


def test_linux_with_bindings_follows_the_rules(binding_host):
    """The cases of the simulator's tests, and random sequences, on the patched kernel.

    The last one costs a device its event in the ITS.
    """
    with both_sides(binding_host) as (simulator, side):
        assert simulator.bindings
        drawn = draw_sequences(simulator, 20, 7)
        for case in (*binding_cases.CASES.values(), binding_cases.no_slot_for_an_msi):
            calls = CheckedCalls(simulator)
            case(calls)
            drawn.append(calls.sequence())
        simulator.lost_events.clear()
        report = conform.compare(simulator, side, drawn, quiet)
    assert not report.mismatches, text_of(report)
    assert report.steps == sum(len(sequence.steps) for sequence in drawn)


@pytest.fixture(scope="module")
def spoilt_host(lab_root, lab_images):
    """An emulated host for calls that cost a device its event in the ITS until it reboots."""
    with LabHost(Shape(nvmes=1)) as host:
        yield host


def not_attached(calls):
    """its_irq_domain_alloc: the event is lost; msi_handle_pci_fail: ENOSPC for the caller."""
    fd = calls.open()
    ioas = calls.ioas_alloc(fd)
    calls.bind(fd, 0)
    calls.enable(0, expect="ENOSPC")
    calls.attach(0, ioas)
    calls.enable(0, expect="ENOSPC")
    calls.bind(fd, 1)
    calls.attach(1, ioas)
    calls.enable(1)
    calls.raise_msi(1)


def no_event_is_left(calls):
    """its_msi_teardown: a device with a lost event keeps its table, over unbinding, too."""
    fd = calls.open()
    calls.bind(fd, 0)
    calls.attach(0, calls.ioas_alloc(fd))
    calls.enable(0, expect="ENOSPC")


def test_a_device_that_is_not_attached_loses_an_event(spoilt_host):
    """The errno of the ioctl is compared; the simulator knows the kernel's own one, too."""
    with both_sides(spoilt_host) as (simulator, side):
        cases = []
        for case in (not_attached, no_event_is_left):
            calls = CheckedCalls(simulator)
            case(calls)
            cases.append(calls.sequence())
        assert simulator.lost_events
        simulator.lost_events.clear()
        report = conform.compare(simulator, side, cases, quiet)
    assert not report.mismatches, text_of(report)
    assert report.steps == sum(len(sequence.steps) for sequence in cases)


#: Enables MSI-X vector 0 of a device, then vector 1, then both, then both after disabling all;
#: prints the error of each call, and whether the kernel says that vectors cannot be added.
VECTORS = """
import ctypes, errno, os
from pathlib import Path
from vmm_msi.errors import BackendError
from vmm_msi.iommu.linux import uapi
from vmm_msi.iommu.linux.iommufd import LinuxIommufd, ioctl
from vmm_msi.iommu.linux.vfio import VfioDevice
from vmm_msi.types import PciAddress
address = PciAddress.parse("{address}")
driver = Path("/sys/bus/pci/devices/{address}/driver")
if driver.exists():
    (driver / "unbind").write_text("{address}")
device, iommufd, event = VfioDevice(address), LinuxIommufd(), os.eventfd(0)
device.open()
device.bind(iommufd)
device.attach(iommufd.ioas_alloc())
TRIGGER = uapi.VFIO_IRQ_SET_DATA_EVENTFD | uapi.VFIO_IRQ_SET_ACTION_TRIGGER
MSIX = uapi.VFIO_PCI_MSIX_IRQ_INDEX
def enable(start, count):
    head = bytes(uapi.IrqSet(20 + 4 * count, TRIGGER, MSIX, start, count))
    argument = bytearray(head + event.to_bytes(4, "little") * count)
    try:
        ioctl(device._fd, uapi.VFIO_DEVICE_SET_IRQS, "SET_IRQS", argument)
    except BackendError as error:
        return errno.errorcode[error.errno]
    return "ok"
info = (ctypes.c_uint32 * 4)(16, 0, MSIX, 0)
ioctl(device._fd, uapi.VFIO_DEVICE_SET_IRQS - 1, "GET_IRQ_INFO", info)
results = [enable(0, 1), enable(1, 1), enable(0, 2)]
device.disable_msi()
print("vectors", *results, enable(0, 2), info[1] & 8, info[3] > 2)
device.release()
"""


def test_a_vector_beyond_the_enabled_ones_is_refused(spoilt_host):
    """vfio_msi_alloc_irq: an ITS has no dynamic vectors (ITS_MSI_FLAGS_SUPPORTED)."""
    with AgentLink(spoilt_host.agent_socket) as link:
        ids = {(d["vendor"], d["device"]): d["address"] for d in link.call("devices")}
    nvme = ids[0x1B36, 0x0010]
    output = run_script(spoilt_host, VECTORS.format(address=nvme), "vectors ")
    assert "vectors ok EINVAL EINVAL ok 8 True" in output


def text_of(report):
    return "\n\n".join("\n".join(conform.lines(mismatch)) for mismatch in report.mismatches)


def check_cases(simulator, side, cases):
    """Check that a kernel does in cases of the simulator's tests what the simulator does."""
    sequences = []
    for case in cases:
        calls = CheckedCalls(simulator)
        case(calls)
        sequences.append(calls.sequence())
    report = conform.compare(simulator, side, sequences, quiet)
    assert not report.mismatches, text_of(report)
    assert report.steps == sum(len(sequence.steps) for sequence in sequences)


def test_linux_follows_the_rules(kernel):
    """The cases of the simulator's tests, on the kernel itself."""
    check_cases(*kernel, CASES.values())


def test_the_command_runs_a_call_sequence_from_a_file(run_folder, simulator, tmp_path, capsys):
    calls = CheckedCalls(simulator)
    CASES["a_stage_1_translates_first"](calls)
    path = tmp_path / "sequence.json"
    path.write_text(json.dumps(call_sequence_json.sequence_to_json(calls.sequence())))
    saved = tmp_path / "saved"
    command = ["lab", "conform", "--replay", str(path), "--save", str(saved), "--format", "json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["scenarios"], report["steps"]) == (1, len(calls.steps))
    assert (report["mismatches"], report["seed"]) == ([], None)
    assert list(saved.iterdir()) == []


def test_linux_has_the_simulators_results(kernel):
    simulator, side = kernel
    report = conform.compare(simulator, side, draw_sequences(simulator, 20, 7), quiet)
    assert not report.mismatches, text_of(report)
    assert report.steps > 400
