"""The model against a machine: wrong models are found, and Linux says what the model says."""

from __future__ import annotations

import json

import pytest
from kernel_cases import CASES, HOST, Play

from vmm_msi.cli import main
from vmm_msi.errors import BackendError
from vmm_msi.iommu import call_sequence, call_sequence_json
from vmm_msi.iommu.sim.call_machine import SimMachine
from vmm_msi.lab.conformance import conform
from vmm_msi.lab.conformance.random_sequences import scenarios
from vmm_msi.lab.conformance.shrink import without
from vmm_msi.lab.rpc.link import AgentLink


def quiet(_done, _total):
    pass


@pytest.fixture
def model():
    return SimMachine(HOST, output_bits=conform.OUTPUT_BITS)


def test_a_seed_draws_the_same_scenarios(model):
    drawn = scenarios(model, 20, 1)
    assert drawn == scenarios(SimMachine(HOST, output_bits=44), 20, 1)
    assert drawn[:5] == scenarios(model, 5, 1)
    assert drawn != scenarios(model, 20, 2)


def test_two_hundred_scenarios_are_enough_and_say_a_lot(model):
    """Every call is made and refused in several ways; none costs a device its ITS event."""
    drawn = scenarios(model, 200, 1)
    assert sum(len(scenario.steps) for scenario in drawn) >= 5000
    seen, ended = set(), set()
    for scenario in drawn:
        assert call_sequence_json.check(scenario) is scenario
        for step, result in zip(scenario.steps, call_sequence.run(model, scenario), strict=True):
            seen.add((step.op, result.errno))
            if result.landing is not None:
                ended.add(result.landing.kind)
    assert not model.lost_events
    assert {op for op, errno in seen if not errno} == set(call_sequence.OPS)
    assert len(seen) > 50
    assert ended == set(call_sequence.LandingKind)


def test_a_right_machine_is_found_right(model):
    side = conform.MachineSide(SimMachine(HOST, output_bits=44))
    drawn = scenarios(model, 200, 1)
    told = []
    report = conform.compare(model, side, drawn, lambda done, total: told.append((done, total)))
    assert report.mismatches == []
    assert report.scenarios == 200
    assert report.steps == sum(len(scenario.steps) for scenario in drawn)
    assert told[-1] == (200, 200)


class ForgetsTheWindow(SimMachine):
    """A host that takes whatever is mapped."""

    def ioas_map(self, fd, ioas, iova, size, page):
        try:
            super().ioas_map(fd, ioas, iova, size, page)
        except BackendError as error:
            if "reserved" not in error.reason:
                raise


class KeepsTheAddress(SimMachine):
    """A host that does not write the address when the MSI is enabled again."""

    def enable(self, device):
        before, known = self.is_enabled(device), self._devices[device].address
        address = super().enable(device)
        if before:
            self._devices[device].address = known
            return known
        return address


class TellsTheHost(SimMachine):
    """A host that logs every fault."""

    def raise_msi(self, device):
        landing = super().raise_msi(device)
        if not landing.guest:
            return landing
        return call_sequence.Landing(landing.kind, event=landing.event)


class OtherErrno(SimMachine):
    """A host that calls a missing vDEVICE invalid."""

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
        (TellsTheHost, "raise_msi", 14),
        (OtherErrno, "attach", 9),
    ],
)
def test_a_wrong_machine_is_found_and_its_scenario_shrunk(wrong, op, longest, model):
    side = conform.MachineSide(wrong(HOST, output_bits=44))
    report = conform.compare(model, side, scenarios(model, 100, 1), quiet)
    assert report.mismatches
    first = report.mismatches[0]
    assert first.step.op == op
    assert len(first.scenario.steps) <= longest
    document = json.loads(json.dumps(conform.to_json(report, 1)))["mismatches"][0]
    assert document["model"] != document["kernel"]
    again = call_sequence_json.scenario_from_json(document["shrunk"])
    assert conform.part(model, side, again) is not None
    assert conform.part(model, conform.MachineSide(model), again) is None
    text = list(conform.lines(first))
    assert text[-2].startswith("model: ")
    assert text[-1].startswith("kernel: ")
    assert f"#{len(first.scenario.steps) - 1} {first.step}" in text


def test_steps_go_with_what_refers_to_them(model):
    play = Play(model)
    CASES["a_device_is_bound_once"](play)
    scenario = play.scenario()
    opened = next(at for at, step in enumerate(scenario.steps) if step.op == "open")
    left = without(scenario, [opened])
    assert "open" in [step.op for step in left.steps]
    assert len(left.steps) == len(scenario.steps) - 3
    call_sequence_json.check(left)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"{", "not JSON"), (b"[" * 100_000, "not JSON"), (b"{}", "what it takes"), (None, "No such")],
)
def test_a_file_that_is_no_scenario_is_refused(content, told, tmp_path, capsys):
    path = tmp_path / "scenario.json"
    if content is not None:
        path.write_bytes(content)
    assert main(["lab", "conform", "--replay", str(path)]) == 3
    error = capsys.readouterr().err
    assert str(path) in error
    assert told in error


def test_a_count_of_none_is_refused(capsys):
    assert main(["lab", "conform", "--count", "0"]) == 2
    assert "valid is 1 to" in capsys.readouterr().err


@pytest.fixture
def kernel(lab_host):
    """A model of the emulated host, and its kernel as the other side."""
    with AgentLink(lab_host.agent_socket) as link:
        link.call("hello")
        host = conform.conform_host(lab_host.board.topology, link.call("devices"))
        side = conform.KernelSide(link, [device.address for device in host.devices])
        yield SimMachine(host, output_bits=conform.OUTPUT_BITS), side


def told(report):
    return "\n\n".join("\n".join(conform.lines(each)) for each in report.mismatches)


def test_linux_follows_the_rules(kernel):
    """The cases that the model is tested with, on the kernel they are from."""
    model, side = kernel
    cases = []
    for make in CASES.values():
        play = Play(model)
        make(play)
        cases.append(play.scenario())
    report = conform.compare(model, side, cases, quiet)
    assert not report.mismatches, told(report)
    assert report.steps == sum(len(scenario.steps) for scenario in cases)


def test_the_command_runs_a_scenario_from_a_file(run_folder, model, tmp_path, capsys):
    play = Play(model)
    CASES["a_stage_1_translates_first"](play)
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps(call_sequence_json.scenario_to_json(play.scenario())))
    saved = tmp_path / "saved"
    command = ["lab", "conform", "--replay", str(path), "--save", str(saved), "--format", "json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["scenarios"], report["steps"]) == (1, len(play.steps))
    assert (report["mismatches"], report["seed"]) == ([], None)
    assert list(saved.iterdir()) == []


def test_linux_says_what_the_model_says(kernel):
    model, side = kernel
    report = conform.compare(model, side, scenarios(model, 20, 7), quiet)
    assert not report.mismatches, told(report)
    assert report.steps > 400
