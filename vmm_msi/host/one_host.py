"""Refuse several HOSTs that do not describe one host.

Sources about one host complement each other: tables, the kernel's lists, libvirt's node devices.
Two sets of tables that differ, or lists without a common element, are of two hosts or of one host
before and after a change of its firmware; merged they would describe a host that does not exist.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.host.crosscheck import Disagreement, has_tables, smmu_differences, table_differences
from vmm_msi.quantity import quantity

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_msi.types import HostTopology

_MAX_SHOWN = 4


def check_one_host(hosts: Sequence[tuple[str, Sequence[HostTopology]]]) -> None:
    """Check that several HOSTs describe one host.

    :param hosts: each HOST's name and sources; sources of one HOST are not compared here.
    :raise TopologyError: when two of them do not; the message has the differences.
    """
    for (name, sources), (other_name, others) in combinations(hosts, 2):
        differences = [
            difference
            for source in sources
            for other in others
            for difference in _differences(source, other)
        ]
        if differences:
            shown = "; ".join(map(_text, differences[:_MAX_SHOWN]))
            more = len(differences) - _MAX_SHOWN
            if more > 0:
                shown += f"; and {quantity(more, 'more difference')}"
            raise TopologyError(
                f"reading {name} and {other_name}: they do not describe one host: {shown}; use "
                "several HOSTs only as sources about one host, and one set of tables"
            )


def _differences(first: HostTopology, second: HostTopology) -> Iterator[Disagreement]:
    """Yield the differences that two sources about one host cannot have."""
    functions = first.functions or second.functions
    if has_tables(first) and has_tables(second):
        yield from table_differences(first, second, functions)
    else:
        smmus = [{smmu.base for smmu in host.smmus} for host in (first, second)]
        if smmus[0].isdisjoint(smmus[1]):
            yield from smmu_differences(first, second)
    addresses = [set(host.function_by_address) for host in (first, second)]
    if all(addresses) and addresses[0].isdisjoint(addresses[1]):
        texts = [f"{min(known)} and others" for known in addresses]
        statements = tuple(
            (host.source, text) for host, text in zip((first, second), texts, strict=True)
        )
        yield Disagreement("PCI functions", statements)


def _text(difference: Disagreement) -> str:
    return f"{difference.subject}: " + " / ".join(text for _source, text in difference.statements)
