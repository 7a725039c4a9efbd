"""The types of the JSON documents of ``compare``.

:mod:`vmm_msi.report.documents` has those of other commands about hosts and guests.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from vmm_msi.report.documents import Hex, Options, Outcome, Pci  # noqa: TC001


class CostsJson(TypedDict):
    """What a strategy costs."""

    s2_domains: int
    s2_mappings: int
    sw_msi_slots: int
    bindings: int
    containers: int


class PathJson(TypedDict):
    """Where MSIs arrived that take the same path."""

    device: Pci
    outcome: Outcome
    its: int | None
    expected_its: int | None
    programmed_iova: Hex | None
    possible_iovas: list[Hex]
    errno: int | None
    errno_inside: int | None
    reason: str
    trace: list[dict[str, Any]]


class RuleJson(TypedDict):
    """The rule that decided, and the function or the specification that has it."""

    rule: str
    source: str


class VerdictJson(PathJson):
    """Where the MSIs ``first`` to ``first + count - 1`` of a device arrived."""

    first: int
    count: int
    decided_by: RuleJson | None


class StrategyResultJson(TypedDict):
    """The verdicts of one strategy."""

    strategy: str
    applied_by: Literal["qemu", "kernel", "sim"]
    options: Options
    verdicts: list[VerdictJson]
    costs: CostsJson


class CompareDocument(TypedDict):
    """Output of ``vmm-msi compare``."""

    schema: Literal[2]
    results: list[StrategyResultJson]


class SettingJson(TypedDict):
    """A key of a scenario and the value that it gets; null for its default."""

    key: str
    value: Any


class WorldJson(TypedDict):
    """A host and a guest; ``error`` says why its settings contradict each other."""

    name: str
    settings: list[SettingJson]
    error: str | None
    results: list[StrategyResultJson]


class KeyJson(TypedDict):
    """A key of ``--vary``, and how many outcomes it changes."""

    key: str
    outcomes: int


class DifferenceJson(TypedDict):
    """The outcome of a device in each world; ``keys`` change it."""

    strategy: str
    kernel: str
    device: Pci
    keys: list[str]
    outcomes: list[str]


class WorldsDocument(TypedDict):
    """Output of ``vmm-msi compare --vary`` and ``--against``."""

    schema: Literal[1]
    worlds: list[WorldJson]
    keys: list[KeyJson]
    differences: list[DifferenceJson]


class VectorVerdictJson(PathJson):
    """Where one MSI arrived."""

    vector: int


class VectorsResultJson(TypedDict):
    """The verdicts of one strategy, one for each vector."""

    strategy: str
    options: Options
    verdicts: list[VectorVerdictJson]
    costs: CostsJson


class CompareVectorsDocument(TypedDict):
    """Output of ``vmm-msi compare --schema 1``."""

    schema: Literal[1]
    results: list[VectorsResultJson]
