"""Scenarios for tests, as TOML text, which is the contract."""

from __future__ import annotations

from dataclasses import dataclass, field

GIOVA_A = 0xFFFF_F000
GIOVA_B = 0xFFFF_E000


@dataclass(frozen=True)
class Device:
    address: str
    its: int = 0
    smmu: int = 0
    group: int = 0
    stage1: str = "s1a"
    vits: int = 0
    giova: int = GIOVA_A
    vectors: int = 2
    its_group: tuple[int, ...] = ()
    extra: str = ""


@dataclass(frozen=True)
class Sample:
    devices: tuple[Device, ...]
    order: str = "interleaved"
    honours_rmr: bool = True
    granule: str = "4K"
    s1_granule: str = "4K"
    containers: str = ""
    vits_bases: dict[int, int] = field(default_factory=lambda: {0: 0x0808_0000, 1: 0x080A_0000})

    def toml(self) -> str:
        itses = sorted({i for d in self.devices for i in (d.its_group or (d.its,))})
        lines = ["[host]", f'granule = "{self.granule}"']
        for smmu in sorted({d.smmu for d in self.devices}):
            lines += ["[[host.smmu]]", f"id = {smmu}"]
        for its in itses:
            lines += [
                "[[host.its]]",
                f"id = {its}",
                f"base = {0x2_0000_0000 + its * 0x100_0000:#x}",
            ]
        for number, d in enumerate(self.devices):
            lines += [
                "[[host.device]]",
                f'address = "{d.address}"',
                f"smmu = {d.smmu}",
                f"its_group = {list(d.its_group or (d.its,))}",
                f"iommu_group = {d.group or number + 1}",
                f"vectors = {d.vectors}",
                d.extra,
            ]
        lines += [
            "[guest]",
            f'order = "{self.order}"',
            f"honours_rmr = {str(self.honours_rmr).lower()}",
        ]
        for vits in sorted({d.vits for d in self.devices}):
            lines += ["[[guest.vits]]", f"id = {vits}", f"base = {self.vits_bases[vits]:#x}"]
        for stage1 in sorted({d.stage1 for d in self.devices}):
            lines += ["[[guest.stage1]]", f'id = "{stage1}"', f'granule = "{self.s1_granule}"']
        for d in self.devices:
            lines += [
                "[[guest.device]]",
                f'host = "{d.address}"',
                f'stage1 = "{d.stage1}"',
                f"vits = {d.vits}",
                f"giova = {d.giova:#x}",
            ]
        if self.containers:
            lines += ["[vmm]", f'containers = "{self.containers}"']
        return "\n".join(lines) + "\n"


A = "0000:01:00.0"
B = "0000:02:00.0"


def pair(
    mode: str,
    *,
    pits: int = 1,
    vits: int | dict[int, int] = 1,
    order: str = "interleaved",
    giova_b: int | None = None,
    **more: object,
) -> Sample:
    """Return two devices on one SMMU, as in the truth table.

    ``mode`` is how they use stage 1: shared, own or own-same.
    """
    a = Device(A)
    b = Device(
        B,
        its=pits - 1,
        stage1="s1a" if mode == "shared" else "s1b",
        vits=vits - 1,
        giova=giova_b or (GIOVA_B if mode == "own" else GIOVA_A),
    )
    return Sample((a, b), order=order, **more)  # type: ignore[arg-type]


def guest_run(scenario, backend, strategy: str):
    """Return a run of the scenario's guest, with one strategy for all of its devices."""
    from vmm_msi.config import Choice
    from vmm_msi.engine.session import GuestSession
    from vmm_msi.plugins.manager import PluginManager

    choices = {device.host: Choice.parse(strategy) for device in scenario.guest.devices}
    return GuestSession(
        PluginManager.load(), scenario.host, scenario.guest, backend, choices, "first-in-group"
    )


def simulated_verdicts(scenario, strategy: str, profile: str):
    """Return the verdicts in the simulator of a kernel, which is as before when all is detached."""
    from vmm_msi.iommu.profiles import profile_named
    from vmm_msi.iommu.sim import SimBackend

    backend = SimBackend(scenario.host, scenario.guest, profile_named(profile))
    before = backend.snapshot()
    with guest_run(scenario, backend, strategy) as session:
        verdicts = list(session.attach_and_deliver())
    assert backend.snapshot() == before
    assert not backend.stale()
    return verdicts
