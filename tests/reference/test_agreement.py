"""The simulator and the reference agree on every call and on where every MSI lands.

``VMM_MSI_SEQUENCES`` is the number of sequences, 2,000 in CI; the first seed is ``VMM_MSI_SEED``.
"""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from random import Random

import pytest
from depth import depth

from reference.machine import TRANSLATE, RefusalError
from reference.nest_parent import Iommufd
from reference.sequences import next_call, random_machine
from reference.type1 import Type1
from vmm_msi.config import Choice
from vmm_msi.engine.session import GuestSession
from vmm_msi.engine.setup import profile_for
from vmm_msi.errors import BackendError, RefusedError
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.types import (
    ContainerPer,
    DeviceId,
    Granule,
    GuestDevice,
    GuestDomain,
    HostDevice,
    HostTopology,
    Iova,
    Ipa,
    Its,
    MemoryRange,
    Pa,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    Smmu,
    Stage1,
    Stage1Mode,
    StreamId,
    Vits,
)

SEQUENCES = int(os.environ.get("VMM_MSI_SEQUENCES", depth(2000)))
SEED = int(os.environ.get("VMM_MSI_SEED", "1"))
PLUGINS = PluginManager.load()
#: Revisions of the series that have bindings, each with the revision that names its allocator.
BINDINGS = {1: 2, 2: 2, 3: 4, 4: 4, 7: 8, 8: 8, 15: 15}


def worlds():
    """Return each kernel and strategy, with a function that makes the reference of it."""
    for n, allocator in BINDINGS.items():
        choice = f"coerced:revision=v{allocator},profile=series-v{n}"
        yield choice, lambda m, n=n: Type1(m, n)
    for n in sorted(set(BINDINGS.values())):
        choice = f"coerced:revision=v{n},profile=linux-7.2-bind"
        yield choice, lambda m, n=n: Iommufd(m, "bindings", n, bind=True)
    for n in (2, 7, 8, 15):
        yield f"direct:profile=series-v{n}", lambda m, n=n: Type1(m, n, "direct")
    yield "host-cookie:profile=pre-series", lambda m: Type1(m, 0, "cookie")
    yield "host-cookie:profile=series-v16", lambda m: Type1(m, 16, "cookie")
    yield "direct:profile=linux-7.2-bind", lambda m: Iommufd(m, "direct", bind=True)
    yield "direct:profile=linux-7.2", lambda m: Iommufd(m, "direct")
    for mode in ("s2", "vits"):
        choice = f"multi-its:mode={mode},profile=linux-7.2"
        yield choice, lambda m, mode=mode: Iommufd(m, mode)
        yield f"{choice}-bind", lambda m, mode=mode: Iommufd(m, mode, bind=True)
    yield "multi-its:mode=vsmmu,profile=linux-7.2", lambda m: Iommufd(m, "vsmmu")
    yield "identity:profile=linux-7.2", lambda m: Iommufd(m, "identity")
    yield "host-cookie:profile=linux-7.2", lambda m: Iommufd(m, "host-cookie")


WORLDS = dict(worlds())


def host_of(machine):
    itses = sorted({device.its for device in machine.devices})
    smmus = sorted({device.smmu for device in machine.devices})
    devices = [
        HostDevice(
            address=PciAddress.parse(device.name),
            smmu=device.smmu,
            stream_id=StreamId(number),
            its_group=(itses.index(device.its),),
            device_id=DeviceId(number),
            iommu_group=device.group,
            vectors=1,
            reserved=tuple(
                ReservedRegion(base, size, ReservedKind[kind.replace("-", "_").upper()])
                for base, size, kind in device.regions
            ),
            streams=device.streams,
        )
        for number, device in enumerate(machine.devices, 1)
    ]
    return HostTopology(
        source="random",
        granule=Granule(machine.page),
        smmus=tuple(Smmu(i, nested=i not in machine.single_stage) for i in smmus),
        itses=tuple(Its(i, Pa(base)) for i, base in enumerate(itses)),
        devices=tuple(devices),
    )


def guest_of(machine):
    assigned = [device for device in machine.devices if device.assigned]
    gdbs = sorted({device.gdb for device in assigned})
    return GuestDomain(
        name="random",
        vits=tuple(Vits(i, Ipa(gdb - 0x10000)) for i, gdb in enumerate(gdbs)),
        stage1=tuple(
            Stage1(name, Granule(size), Stage1Mode(machine.modes.get(name, TRANSLATE)))
            for name, size in machine.granules.items()
        ),
        devices=tuple(
            GuestDevice(
                PciAddress.parse(d.name), d.stage1, gdbs.index(d.gdb), Iova(d.giova), d.guest_vfio
            )
            for d in assigned
        ),
        honours_rmr=machine.honours_rmr,
        memory=tuple(MemoryRange(Ipa(base), size) for base, size in machine.ram),
        containers=ContainerPer(machine.containers),
    )


class Simulated:
    """The same calls in the simulator."""

    def __init__(self, machine, choice):
        host, guest = host_of(machine), guest_of(machine)
        backend = SimBackend(host, guest, profile_for(PLUGINS, [choice]))
        choices = {device.host: choice for device in guest.devices}
        self.session = GuestSession(PLUGINS, host, guest, backend, choices, "first-in-group")

    def call(self, name, device):
        """Return the address in the device, None, or (errno, errno inside) of a refusal."""
        try:
            result = getattr(self.session, name)(PciAddress.parse(device.name))
        except BackendError as error:
            return error.errno, error.errno if error.inside is None else error.inside
        except RefusedError:
            return None, None
        return None if result is None else hex(result)

    def deliver(self, device):
        return str(self.session.deliver(PciAddress.parse(device.name)).outcome)


class Referred:
    """The same calls in the reference."""

    def __init__(self, world):
        self.world = world

    def call(self, name, device):
        """See :meth:`Simulated.call`."""
        try:
            getattr(self.world, name)(device)
        except RefusalError as error:
            return error.number, error.inside
        return hex(self.world.programmed[device.name]) if name == "prepare" else None

    def deliver(self, device):
        return self.world.deliver(device)


def run(seed, choice=None):
    """Run one sequence in both; return (choice, machine, the calls with both results)."""
    random = Random(seed)  # noqa: S311 - reproducible scenarios, not secrets
    drawn = random.choice(sorted(WORLDS))
    name = choice or drawn
    machine = random_machine(random)
    if not any(device.assigned for device in machine.devices):
        return name, machine, []
    sides = Simulated(machine, Choice.parse(name)), Referred(WORLDS[name](machine))
    state: dict[str, str] = {}
    log = []
    for _ in range(random.randint(4, 30)):
        call = next_call(random, machine, state)
        results = [side.call(*call) for side in sides]
        log.append((call.name, call.device.name, *results))
        if results[0] != results[1]:
            return name, machine, log
        if isinstance(results[1], tuple):
            # As the engine does: a refused device is detached.
            if call.device.name in state:
                for side in sides:
                    side.call("detach", call.device)
            state.pop(call.device.name, None)
        elif call.name == "detach":
            del state[call.device.name]
        else:
            state[call.device.name] = call.name
        for device in machine.devices:
            if state.get(device.name) == "prepare":
                results = [side.deliver(device) for side in sides]
                log.append(("deliver", device.name, *results))
                if results[0] != results[1]:
                    return name, machine, log
    return name, machine, log


def disagreement(seed, choice=None):
    """Return a report of a sequence in which the two differ; empty if they agree."""
    name, machine, log = run(seed, choice)
    if not log or log[-1][2] == log[-1][3]:
        return ""
    lines = [f"seed {seed}: {name}", str(machine)]
    lines += [f"{call} {device}: simulator {a}, reference {b}" for call, device, a, b in log]
    return "\n".join(lines)


@pytest.mark.parametrize("part", range(20))
def test_simulator_and_reference_agree(part):
    for seed in range(SEED + part, SEED + SEQUENCES, 20):
        report = disagreement(seed)
        assert not report, report


def test_the_reference_imports_the_standard_library_alone():
    for path in Path(__file__).parent.glob("*.py"):
        if path.name.startswith("test_"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            else:
                continue
            for module in modules:
                top = module.split(".")[0]
                assert top == "reference" or top in sys.stdlib_module_names, (path.name, module)
