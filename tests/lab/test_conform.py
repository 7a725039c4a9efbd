"""The simulator against another machine: wrong machines are found, and Linux agrees."""

from __future__ import annotations

import json

import json_schemas
import pytest
from kernel_cases import CASES, HOST, CheckedCalls

from vmm_msi.cli import main
from vmm_msi.errors import BackendError
from vmm_msi.iommu import call_sequence, call_sequence_json
from vmm_msi.iommu.sim.call_machine import SimMachine
from vmm_msi.lab.conformance import conform
from vmm_msi.lab.conformance.random_sequences import draw_sequences
from vmm_msi.lab.conformance.shrink import without
from vmm_msi.lab.rpc.link import AgentLink


def quiet(_done, _total):
    pass


@pytest.fixture
def simulator():
    return SimMachine(HOST, output_bits=conform.OUTPUT_BITS)


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
    assert {op for op, errno in results if not errno} == set(call_sequence.OPS)
    assert len(results) > 50
    assert landings == set(call_sequence.LandingKind)


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
    with AgentLink(lab_host.agent_socket) as link:
        link.call("hello")
        host = conform.conform_host(lab_host.board.topology, link.call("devices"))
        side = conform.KernelSide(link, [device.address for device in host.devices])
        yield SimMachine(host, output_bits=conform.OUTPUT_BITS), side


def text_of(report):
    return "\n\n".join("\n".join(conform.lines(mismatch)) for mismatch in report.mismatches)


def test_linux_follows_the_rules(kernel):
    """The cases of the simulator's tests, on the kernel itself."""
    simulator, side = kernel
    cases = []
    for case in CASES.values():
        calls = CheckedCalls(simulator)
        case(calls)
        cases.append(calls.sequence())
    report = conform.compare(simulator, side, cases, quiet)
    assert not report.mismatches, text_of(report)
    assert report.steps == sum(len(sequence.steps) for sequence in cases)


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
