"""The JSON of worlds that were compared: the results of each, and the outcomes that differ.

::

    {"schema": 1, "worlds": [{"name", "settings": [{"key", "value"}], "error", "results": […]}],
    "keys": [{"key", "outcomes"}], "differences": [{"strategy", "kernel", "device", "keys",
    "outcomes": […]}]}

``results`` are those of schema 2 of :mod:`vmm_msi.report.compare_json`. ``outcomes`` of a
difference has one for each world, in order; ``keys`` those of ``--vary`` that change it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TextIO

import msgspec

from vmm_msi.report import compare_json
from vmm_msi.report.json_text import escape_unprintable
from vmm_msi.report.worlds import deciding_axes, table_of_outcomes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_msi.report.worlds import Axis, Ran

SCHEMA: Final = 1


def write(runs: Sequence[Ran], axes: Sequence[Axis], out: TextIO) -> None:
    """Write the document to ``out``.

    :param axes: of ``--vary``; empty for two worlds of ``--against``.
    """
    out.write(f'{{"schema": {SCHEMA}, "worlds": [')
    for number, ran in enumerate(runs):
        world = ran.world
        settings = [{"key": s.key, "value": s.value} for s in world.settings]
        head = {"name": world.name, "settings": settings, "error": world.error or None}
        out.write("," if number else "")
        out.write(f'\n{_encode(head)[:-1]}, "results": [')
        compare_json.write_results(ran.results, out)
        out.write("]}")
    outcomes = table_of_outcomes(runs)
    worlds = [ran.world for ran in runs]
    differences = [
        {
            "strategy": subject.strategy,
            "kernel": subject.kernel,
            "device": subject.device,
            "keys": [axes[number].key for number in deciding_axes(worlds, axes, values)],
            "outcomes": values,
        }
        for subject, values in outcomes.items()
        if len(set(values)) > 1
    ]
    keys = [
        {"key": axis.key, "outcomes": sum(axis.key in d["keys"] for d in differences)}
        for axis in axes
    ]
    out.write(f'],\n"keys": {_encode(keys)},\n"differences": {_encode(differences)}}}\n')


def _encode(value: object) -> str:
    return escape_unprintable(msgspec.json.encode(value).decode())
