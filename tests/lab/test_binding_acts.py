"""The commands that spoil and repair the bindings of a guest, and which strategies have some."""

from __future__ import annotations

import json

import pytest

from vmm_msi.cli.lab_guest import _is_bound_by_kernel
from vmm_msi.errors import LabError, UsageError
from vmm_msi.lab.guest import binding_acts
from vmm_msi.lab.guest.binding_acts import WITHDRAW, WRONG_GDB, WRONG_GIOVA, BindingActs
from vmm_msi.types import PciAddress

A = PciAddress(0, 0x11, 0, 0)
TEXT = """version 1
device 0000:11:00.0 context 1 hwpt 3 vdevice 8 vsid 0x1100 allocator direct
binding 0000:11:00.0 iova 0xfffff000 gpa 0x8090000 shift 12 hpa 0x8090000 used
device 0000:12:00.0 context 1 hwpt 3 vdevice 9 vsid 0x1200 allocator direct
binding 0000:12:00.0 iova 0xfffff000 gpa 0x8090000 shift 12 hpa 0x8090000 used
pending 0000:13:00.0 iova 0xfffff000 gpa 0x8090000 shift 12
"""


class Agent:
    """An agent whose kernel has one text; ``calls`` has the requests."""

    def __init__(self, *texts, errno=""):
        self.calls = []
        self.texts = list(texts)
        self.errno = errno
        self.log = ""

    def call(self, verb, **arguments):
        self.calls.append((verb, *arguments.values()))
        if verb == "stop-rebinding":
            return 7
        if verb == "watch-log":
            return self.log
        if verb != "msi-bindings":
            return None
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        return {"answers": [self.errno for _ in arguments["commands"]], "text": text}


@pytest.mark.parametrize(
    ("act", "command"),
    [
        (WRONG_GDB, "bind 0000:11:00.0 0xfffff000 0x8091000 12"),
        (WRONG_GIOVA, "bind 0000:11:00.0 0x100000 0x8090000 12"),
        (WITHDRAW, "unbind 0000:11:00.0 0xfffff000"),
    ],
)
def test_a_binding_is_spoiled_while_the_service_is_paused(act, command):
    agent = Agent(TEXT)
    with BindingActs(agent).spoiled(act, [A]):
        agent.calls.append(("exercise",))
    verbs = [call[0] for call in agent.calls]
    assert verbs[:5] == ["msi-bindings", "pause-watch", "msi-bindings", "exercise", "resume-watch"]
    assert agent.calls[2] == ("msi-bindings", [command])


def test_a_binding_that_is_not_repaired_is_an_error(monkeypatch):
    monkeypatch.setattr(binding_acts, "_REPAIR_S", 0.0)
    agent = Agent(TEXT, TEXT.replace("0x8090000", "0x8091000"))
    with (
        pytest.raises(LabError, match="vmm-msi watch has not repaired the bindings after 0 s"),
        BindingActs(agent).spoiled(WRONG_GDB, [A]),
    ):
        pass


def test_a_refused_command_is_an_error():
    with (
        pytest.raises(LabError, match=r"0xfffff000' in the emulated host: EBUSY"),
        BindingActs(Agent(TEXT, errno="EBUSY")).spoiled(WITHDRAW, [A]),
    ):
        pass


def test_devices_are_rebound_until_the_work_is_done():
    agent = Agent(TEXT)
    with BindingActs(agent).rebinding([A], 20) as rebinds:
        assert rebinds == []
    assert rebinds == [7]
    rounds = [["unbind 0000:11:00.0 0xfffff000", "bind 0000:11:00.0 0xfffff000 0x8090000 12"]]
    assert ("start-rebinding", rounds, 20) in agent.calls
    assert agent.calls[-1] == ("resume-watch",)


def test_events_of_devices_are_shown():
    agent = Agent(TEXT)
    fields = {"uri": "qemu:///system", "domain": "g", "device": str(A), "giova": "0xfffff000"}
    agent.log = "\n".join(
        [
            json.dumps({"time": "now", "level": "info", "event": "service-ready"}),
            json.dumps({"time": "now", "level": "info", "event": "kernel-bound", **fields}),
            "Traceback",
        ]
    )
    acts = BindingActs(agent)
    acts.start_watch()
    assert acts.events() == ["kernel-bound device=0000:11:00.0 giova=0xfffff000"]
    assert acts.lines() == TEXT.splitlines()[1:]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (None, False),
        ("identity", False),
        ("multi-its:mode=vsmmu", False),
        ("multi-its", True),
        ("multi-its:mode=vits", True),
        ("direct", True),
        ("coerced", True),
        ("coerced:revision=v2", True),
    ],
)
def test_strategies_that_need_the_kernel_with_bindings(strategy, expected):
    assert _is_bound_by_kernel(strategy) is expected


@pytest.mark.parametrize("strategy", ["direct:profile=linux-7.2", "window", "host-cookie"])
def test_a_strategy_that_nothing_applies_is_refused(strategy):
    with pytest.raises(UsageError, match=f"--strategy {strategy}: neither QEMU nor a kernel"):
        _is_bound_by_kernel(strategy)
