"""Random hosts, guests and orders of calls, by seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from reference.machine import (
    BYPASS,
    DIRECT,
    DIRECT_RELAXABLE,
    HW_MSI,
    RESERVED,
    RMR,
    S1DSS_BYPASS,
    SW_MSI,
    Device,
    Machine,
)

if TYPE_CHECKING:
    from random import Random

K4, K16, K64 = 0x1000, 0x4000, 0x10000
WINDOW = ((*RMR, SW_MSI),)
#: Plain devices, and devices with an oddity.
REGIONS = [
    *[WINDOW] * 16,
    ((0x0A00_0000, 0x10_0000, SW_MSI),),
    ((0xFEE0_0000, 0x10_0000, HW_MSI),),
    (),
    (*WINDOW, (0x4000_0000, 0x1000, DIRECT_RELAXABLE)),
    (*WINDOW, (0x5000_0000, 0x1000, DIRECT)),
    (*WINDOW, (0x0A0A_0000, 0x10000, RESERVED)),
]
RAM = [
    *[((0x4000_0000, 0x4000_0000),)] * 10,
    ((0x0, 0x0810_0000), (0x4000_0000, 0x1000_0000)),
    ((0x0A09_0000, 0x1_0000), (0x4000_0000, 0x1000_0000)),
]
#: Doorbell pages of virtual ITSes: QEMU's, outside of the window, unaligned to 64 KiB.
GDBS = [0x0809_0000, 0x0809_0000, 0x080B_0000, 0x0A09_0000, 0x0A0A_0000, 0x0A0B_1000]
GIOVAS = [0xFFFF_F000, 0xFFFF_F000, 0xFFFF_E000, 0xFFFE_0000, 0xFFFD_0000, 0x0800_0000]


class Call(NamedTuple):
    """One call: attach, bind, prepare or detach."""

    name: str
    device: Device


def random_machine(random: Random) -> Machine:
    """Draw a host with up to 3 SMMUs and 3 ITSes, and a guest with up to 5 of its devices."""
    page = random.choice([K4, K4, K64])
    smmus, itses = random.randint(1, 3), random.randint(1, 3)
    gdbs = random.sample(GDBS, random.randint(1, 2))
    granules = {"shared": random.choice([K4, K4, K64])}
    modes: dict[str, str] = {}
    gdb_of: dict[tuple[str, int], int] = {}
    devices: list[Device] = []
    own_stage1 = random.choice([0.0, 0.3, 1.0])
    for number in range(random.randint(1, 5)):
        mate = random.choice(devices) if devices and random.random() < 0.15 else None
        name = f"s1-{number}" if random.random() < own_stage1 else "shared"
        granule = granules.setdefault(name, random.choice([K4, K4, K16, K64]))
        giova = random.choice(GIOVAS[: random.choice([2, 4, 6])]) & -granule
        gdb = gdb_of.setdefault((name, giova), random.choice(gdbs))
        if name not in {device.stage1 for device in devices} and random.random() < 0.1:
            modes[name] = random.choice([BYPASS, S1DSS_BYPASS])
        devices.append(
            Device(
                name=f"0000:{number + 1:02x}:00.0",
                smmu=mate.smmu if mate else random.randrange(smmus),
                its=0x2_0000_0000 + random.randrange(itses) * 0x100_0000,
                group=mate.group if mate else number + 1,
                regions=mate.regions if mate and random.random() < 0.7 else random.choice(REGIONS),
                streams=2 if random.random() < 0.04 else 1,
                assigned=not mate or random.random() < 0.8,
                stage1=name,
                gdb=gdb,
                giova=gdb if name in modes else giova,
                guest_vfio=random.random() < 0.05,
            )
        )
    return Machine(
        page=page,
        devices=tuple(devices),
        granules=granules,
        ram=random.choice(RAM),
        single_stage=frozenset(s for s in range(smmus) if random.random() < 0.03),
        honours_rmr=random.random() < 0.6,
        containers=random.choice(["device", "stage1", "guest"]),
        modes=modes,
    )


def next_call(random: Random, machine: Machine, state: dict[str, str]) -> Call:
    """Draw a call that is valid now.

    :param state: the last call for each device that is attached.
    """
    device = random.choice([d for d in machine.devices if d.assigned])
    last = state.get(device.name)
    if last is None:
        return Call("attach", device)
    if random.random() < (0.5 if last == "prepare" else 0.15):
        return Call("detach", device)
    # MSIs can be enabled without a binding, and enabled again.
    binds = last == "attach" and random.random() < 0.93
    return Call("bind" if binds else "prepare", device)
