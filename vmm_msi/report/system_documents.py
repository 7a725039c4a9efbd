"""The types of the JSON documents of ``bind``, ``config``, ``plugins``, ``hook`` and ``lab``.

:mod:`vmm_msi.report.documents` has those about hosts and guests.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from vmm_msi.report.documents import Hex, KernelBindingJson, Options, Pci  # noqa: TC001


class ConfiguredDomainJson(TypedDict):
    """What the configuration selects for a libvirt domain."""

    strategy: str
    its_selector: str
    devices: dict[str, str]


class ConfigDocument(TypedDict):
    """Output of ``vmm-msi config check``."""

    schema: Literal[1]
    path: str | None
    strategy: str
    its_selector: str
    domains: dict[str, ConfiguredDomainJson]
    strategies: dict[str, Options]
    disabled_plugins: list[str]


class PluginJson(TypedDict):
    """A plugin; the keys that may be absent are those of strategies."""

    name: str
    kind: str | None
    state: str
    origin: str
    problem: str | None
    summary: str | None
    options: NotRequired[Options]
    needs: NotRequired[list[str]]
    guest: NotRequired[str]
    host: NotRequired[str]
    xml: NotRequired[str]
    costs: NotRequired[str]


class PluginsDocument(TypedDict):
    """Output of ``vmm-msi plugins list``."""

    schema: Literal[1]
    plugins: list[PluginJson]


class PluginProblemJson(TypedDict):
    """A way in which a plugin breaks the contract; ``place`` is file and line."""

    check: str
    place: str
    what: str
    remedy: str
    scenarios: list[str]


class CheckedPluginJson(TypedDict):
    """What was checked of one plugin; ``kind`` is null if it cannot be registered."""

    name: str
    kind: str | None
    origin: str
    checks: int
    problems: list[PluginProblemJson]


class PluginsCheckDocument(TypedDict):
    """Output of ``vmm-msi plugins check``."""

    schema: Literal[1]
    plugins: list[CheckedPluginJson]


class HookDocument(TypedDict):
    """Output of ``vmm-msi hook install`` and ``vmm-msi hook uninstall``."""

    schema: Literal[1]
    path: str
    mode: str | None
    done: str
    changed: bool
    notes: list[str]


class InstalledJson(TypedDict):
    """The installed hook."""

    path: str
    version: str
    mode: str
    interpreter: str
    in_step: bool
    works: bool | None
    weakness: str | None


class HookCallJson(TypedDict):
    """A call of the hook by libvirt."""

    time: str
    operation: str
    extra: str
    refused: bool
    problems: list[str]


class HookGuestJson(TypedDict):
    """The calls for the last run of a guest."""

    uuid: str
    guest: str
    steps: list[HookCallJson]


class HookStatusDocument(TypedDict):
    """Output of ``vmm-msi hook status``."""

    schema: Literal[1]
    installed: InstalledJson | None
    guests: list[HookGuestJson]
    notes: list[str]


class LabRootDocument(TypedDict):
    """Output of ``vmm-msi lab root``."""

    schema: Literal[1]
    path: str
    suite: str
    architecture: str
    libvirt: str
    qemu: str
    built: str
    cached: bool


class LabBuildDocument(TypedDict):
    """Output of ``vmm-msi lab build``."""

    schema: Literal[1]
    release: str
    granule: str
    suite: str
    kernel: str
    kernel_bind: NotRequired[str]
    initrd: str
    root: str
    objects: NotRequired[str]
    built: str
    cached: bool
    kernel_bytes: int
    kernel_bind_bytes: NotRequired[int]
    initrd_bytes: int
    objects_bytes: NotRequired[int]


class ShapeJson(TypedDict):
    """What an emulated host has; ``memory`` in MiB."""

    smmus: int
    devices: int
    pairs: int
    granule: str
    memory: int
    vcpus: int
    nvmes: int
    e1000es: int
    igbs: int
    itses: int
    guests: bool
    kernel: str


class LabStatusDocument(TypedDict):
    """Output of ``vmm-msi lab status``; most keys are those of a running host."""

    schema: Literal[1]
    state: str
    agent: NotRequired[str]
    shape: NotRequired[ShapeJson]
    suite: NotRequired[str]
    agent_socket: NotRequired[str]
    console_socket: NotRequired[str]
    serial_log: NotRequired[str]
    uri: NotRequired[str]
    board: NotRequired[str]
    layer: NotRequired[str]
    release: NotRequired[str]
    since: NotRequired[str]
    boot_s: NotRequired[float]
    pid: NotRequired[int]
    when: NotRequired[str | None]
    error: NotRequired[str | None]
    logs: NotRequired[str | None]


class MismatchJson(TypedDict):
    """A step on which simulator (``model``) and kernel differ."""

    scenario: int
    step: str
    model: str
    kernel: str
    shrunk: dict[str, Any]


class ConformDocument(TypedDict):
    """Output of ``vmm-msi lab conform``."""

    schema: Literal[1]
    seed: int | None
    scenarios: int
    steps: int
    mismatches: list[MismatchJson]
    seconds: dict[str, float]


class RmrJson(TypedDict):
    """A range that the guest's IORT has mapped 1:1."""

    base: Hex
    size: Hex
    remap_permitted: bool


class GuestVectorJson(TypedDict):
    """An interrupt as the guest counts it."""

    name: str
    before: int
    after: int


class CountsJson(TypedDict):
    """What a device's MSIs did until one moment; null if unknown."""

    programmed_iovas: list[str] | None
    interrupts: int | None
    faults: int | None


class StatusCheckJson(TypedDict):
    """What ``vmm-msi status`` measured, and what the lab counted before and after it."""

    reported: CountsJson | None
    counted: list[CountsJson]
    agrees: bool


class SampleJson(TypedDict):
    """The counts of a device at one moment of its work."""

    seconds: float
    done: int
    interrupts: int


class ExpectedJson(TypedDict):
    """What the simulator predicted for a device when it was attached."""

    outcome: str
    possible_iovas: list[Hex]


class GuestDeviceJson(TypedDict):
    """The work of a device in the guest, and the interrupts that arrived."""

    host: Pci
    guest: Pci | None
    driver: str | None
    work: str
    done: int
    seconds: float
    each: bool
    vectors: list[GuestVectorJson]
    its: str | None
    landed: dict[str, int]
    misrouted: dict[str, int]
    arrived: int
    complete: bool
    checks: list[StatusCheckJson]
    samples: list[SampleJson]


class PhaseJson(TypedDict):
    """The devices after one change of the guest."""

    after: str
    devices: list[GuestDeviceJson]


class LabGuestDocument(TypedDict):
    """Output of ``vmm-msi lab guest``."""

    schema: Literal[1]
    releases: dict[str, str]
    rmrs: list[RmrJson]
    groups: list[dict[str, Any]]
    phases: list[PhaseJson]
    complete: bool
    predicted: list[dict[str, Any]]
    expected: dict[str, ExpectedJson]
    host_faults: list[str]
    guest_faults: list[str]
    explained: list[str]
    status: list[str]
    status_agrees: bool
    bindings: list[str]
    watch: list[str]
    seconds: dict[str, float]


class TableFaultJson(TypedDict):
    """A fault that a kernel logged: whose, ``host`` or ``guest``, and its line."""

    log: Literal["host", "guest"]
    line: str


class TablePredictionJson(TypedDict):
    """What the simulator predicted for a device."""

    outcome: str
    errno: str | None
    programmed_iova: str | None


class TableDeviceJson(TypedDict):
    """What a device did in one cell; an unknown outcome is null."""

    device: Pci
    giova: Hex
    outcome: str | None
    errno: str | None
    programmed_iovas: list[Hex]
    done: int
    landed: int
    misrouted: int
    arrived: int
    faults: list[TableFaultJson]
    predicted: TablePredictionJson
    agrees: bool


class TableCellJson(TypedDict):
    """One cell of the truth table: a row, a strategy, two devices."""

    stage1: str
    order: str
    rmr: bool
    vsmmus: int
    strategy: str
    devices: list[TableDeviceJson]
    agrees: bool
    seconds: float


class CompareGuestsDocument(TypedDict):
    """Output of ``vmm-msi lab compare-guests``."""

    schema: Literal[1]
    releases: dict[str, str]
    itses: int
    cells: list[TableCellJson]
    disagreements: int
    seconds: float


# vmm-msi bind


class BoundDeviceJson(TypedDict):
    """The kernel's bindings of a device; ``error`` is the refusal of the kernel."""

    device: Pci
    strategy: str | None
    giova_from: Literal["guest", "kernel", "predicted"] | None
    bindings: list[KernelBindingJson]
    error: str | None


class BindDocument(TypedDict):
    """Output of ``vmm-msi bind``; with ``dry_run`` the commands were not written."""

    schema: Literal[1]
    domain: str
    dry_run: bool
    commands: list[str]
    devices: list[BoundDeviceJson]
    notes: list[str]
