"""The types of the JSON documents that commands print with ``--format json``.

``docs/schemas`` has them as JSON Schema, which ``tests/doc_blocks.py`` generates from this module;
commands need it for type checking only. A document's ``schema`` is incremented when a key changes
its meaning or is removed, not when one is added.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

Hex = Annotated[str, Meta(pattern="^0x[0-9a-f]+$")]
Pci = Annotated[str, Meta(pattern="^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\\.[0-7]$")]
Outcome = Literal["delivered", "s1-fault", "s2-fault", "misrouted", "refused"]
#: Values of options, as plugins declare them.
Options = dict[str, Any]


class ErrorDocument(TypedDict):
    """An error of any command, on standard error."""

    schema: Literal[1]
    command: str
    code: str
    exit_code: int
    message: str
    findings: NotRequired[list[str]]
    errors: NotRequired[list[str]]


# vmm-msi doctor


class EvidenceJson(TypedDict):
    """A value and where it was read."""

    where: str
    what: str


class FindingJson(TypedDict):
    """A finding; docs/doctor.md lists the ids."""

    id: str
    severity: Literal["error", "warning", "note", "unknown"]
    subject: str
    evidence: list[EvidenceJson]
    consequence: str
    remedy: str


class DoctorDocument(TypedDict):
    """Output of ``vmm-msi doctor``."""

    schema: Literal[1]
    host: str
    host_files: bool
    domain: str | None
    devices: list[Pci]
    counts: dict[str, int]
    ignored: dict[str, int]
    findings: list[FindingJson]


# vmm-msi explain


class SubjectJson(TypedDict):
    """A device that a line is about."""

    address: Pci | None
    guest_address: Pci | None
    note: str


class RemedyJson(TypedDict):
    """A change that fixes the problem."""

    what: str
    strategy: str | None
    change: str | None


#: Another cause, with the condition for it.
ReadingJson = TypedDict("ReadingJson", {"if": str, "why": str, "remedies": list[str]})


class ExplanationJson(TypedDict):
    """The explanation of a line."""

    id: str
    program: str
    line: int
    text: str
    count: int
    what: str
    devices: list[SubjectJson]
    stream_id: Hex | None
    stage: int | None
    iova: Hex | None
    iova_is: str
    ipa: Hex | None
    ipa_is: str
    missing: str
    why: str
    mends: list[RemedyJson]
    otherwise: list[ReadingJson]
    findings: list[str]
    source: str


class ExplainDocument(TypedDict):
    """Output of ``vmm-msi explain``."""

    schema: Literal[1]
    explanations: list[ExplanationJson]
    lines_not_recognised: int
    explanations_left_out: int
    events_not_logged: int
    notes: list[str]


# vmm-msi attach, detach, status


class PredictedJson(TypedDict):
    """What the simulator predicted at attach."""

    outcome: str
    programmed_iova: Hex | None
    possible_iovas: list[Hex]


class DeviceJson(TypedDict):
    """An attached device."""

    device: Pci
    strategy: str
    options: dict[str, str]
    backend: str
    smmu: int
    its: int | None
    pxb: int
    root_port: int
    giova: Hex | None
    gdb: Hex | None
    predicted: PredictedJson | None


class VsmmuJson(TypedDict):
    """A vSMMU that attach added."""

    pxb: int
    bus_nr: int
    smmu: int
    its: int | None
    accelerated: bool
    spare_ports: list[int]


class ChangeDocument(TypedDict):
    """Output of ``vmm-msi attach`` and ``vmm-msi detach``: the guest's devices afterwards."""

    schema: Literal[1]
    domain: str
    done: str | None
    vsmmus: list[VsmmuJson]
    devices: list[DeviceJson]
    notes: list[str]


class MeasuredJson(TypedDict):
    """What was measured of a device of a running guest; null where it could not be read."""

    programmed_iovas: list[Hex] | None
    interrupts: int | None
    vectors: int | None
    faults: int | None


class KernelBindingJson(TypedDict):
    """A binding of a guest's MSIs that the kernel has; ``hdb_page`` is null until it is mapped."""

    giova: Hex
    gdb: Hex
    page_shift: int
    hdb_page: Hex | None
    state: Literal["pending", "used", "unused"]


class StatusDeviceJson(DeviceJson):
    """A device with its measurement; ``kernel_bindings`` is null if they could not be read."""

    measured: MeasuredJson | None
    kernel_bindings: list[KernelBindingJson] | None


class GuestJson(TypedDict):
    """The status of one guest."""

    domain: str
    state: Literal["running", "off"] | None
    free_ports: int
    vsmmus: list[VsmmuJson]
    devices: list[StatusDeviceJson]
    other_devices: list[Pci]
    other_measured: dict[str, MeasuredJson]
    notes: list[str]


class StatusDocument(GuestJson):
    """Output of ``vmm-msi status DOMAIN``."""

    schema: Literal[1]


class StatusListDocument(TypedDict):
    """Output of ``vmm-msi status`` without a domain."""

    schema: Literal[1]
    domains: list[GuestJson]
    notes: list[str]


# vmm-msi topology show


class SmmuJson(TypedDict):
    """A physical SMMU."""

    id: int
    base: Hex | None
    nested: bool
    version: int


class ItsJson(TypedDict):
    """A physical ITS."""

    id: int
    base: Hex
    doorbell: Hex
    gicv5: bool
    gicv2m: bool
    pre_its: Hex | None
    isolated_msi: bool


class RouteJson(TypedDict):
    """The way of a range of PCI functions to an SMMU and an ITS."""

    segment: int
    first: Pci
    last: Pci
    smmu: int | None
    stream_id: Hex | None
    one_stream_id: bool
    its_group: list[int]
    device_id: Hex | None
    one_device_id: bool


class ReservedJson(TypedDict):
    """A reserved region."""

    base: Hex
    size: Hex
    type: str


class HostDeviceJson(TypedDict):
    """A device of a host description."""

    address: Pci
    smmu: int | None
    stream_id: Hex
    streams: int
    its_group: list[int]
    device_id: Hex
    iommu_group: int
    vectors: int
    reserved: list[ReservedJson]


class TableErrorJson(TypedDict):
    """A defect of a firmware table."""

    table: str
    error: str


class SegmentJson(TypedDict):
    """Attributes of a PCI segment; null where no source reports them."""

    segment: int
    ats: bool | None
    canwbs: bool | None


class ReservedMemoryJson(TypedDict):
    """Memory that firmware has mapped 1:1 (RMR)."""

    base: Hex
    size: Hex
    smmu: int
    first_stream_id: Hex
    last_stream_id: Hex
    relaxable: bool


FunctionJson = TypedDict(
    "FunctionJson",
    {
        "address": Pci,
        "class": Hex | None,
        "driver": str | None,
        "numa_node": int | None,
        "iommu_group": int | None,
        "smmu": int | None,
        "vectors": int | None,
        "ats": bool | None,
        "pasid": bool | None,
        "physical_function": Pci | None,
        "virtual_functions": list[Pci],
        "dma_aliases": list[Pci],
        "msi_alias": Pci | None,
    },
)


class GroupJson(TypedDict):
    """An IOMMU group."""

    group: int | None
    members: list[Pci]
    isolated_msi: bool | None
    reserved: list[ReservedJson] | None


class StatementJson(TypedDict):
    """What one source describes."""

    source: str
    says: str


class DisagreementJson(TypedDict):
    """A fact that sources describe differently."""

    subject: str
    statements: list[StatementJson]


class SystemJson(TypedDict):
    """What the running system and its firmware report."""

    granule_known: bool
    missing: list[str]
    table_errors: list[TableErrorJson]
    segments: list[SegmentJson]
    reserved_memory: list[ReservedMemoryJson]
    functions: list[FunctionJson]
    iommu_groups: list[GroupJson]
    disagreements: list[DisagreementJson]


class TopologyDocument(SystemJson):
    """Output of ``vmm-msi topology show``; ``msi_bindings`` is the version of that interface."""

    schema: Literal[1]
    source: str
    granule: str
    msi_bindings: int | None
    smmus: list[SmmuJson]
    itses: list[ItsJson]
    routes: list[RouteJson]
    devices: list[HostDeviceJson]


# vmm-msi replay


class ReleasesJson(TypedDict):
    """Releases of the recorded host's software; empty if unknown."""

    linux: str
    libvirt: str
    qemu: str
    vmm_msi: str


class RecordedJson(TypedDict):
    """A device as recorded."""

    strategy: str
    programmed: list[Hex]
    slot: int | None
    its: int
    interrupts: int
    outcome: str | None
    fault: str | None


class SimulatedJson(TypedDict):
    """A device as simulated."""

    strategy: str
    programmed: Hex | None
    slot: int | None
    its: int | None
    outcome: Outcome
    reason: str


class ReplayDeviceJson(TypedDict):
    """The comparison of one device; ``model`` is the simulator."""

    device: Pci
    recorded: RecordedJson
    model: SimulatedJson
    disagreements: list[str]
    notes: list[str]


class ReplayDocument(TypedDict):
    """Output of ``vmm-msi replay``."""

    schema: Literal[1]
    agrees: bool
    releases: ReleasesJson
    kernel: str
    devices: list[ReplayDeviceJson]
    disagreements: list[str]
    not_recorded: list[str]
