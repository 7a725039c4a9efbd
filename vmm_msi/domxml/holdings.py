"""Find the guests that have a device, or a function that disappears with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vmm_msi.types import PciAddress, PciFunction


class Holding(NamedTuple):
    """A device that another guest has, or whose physical or virtual function it has.

    :param function: the function that the guest has: the device, its physical function or one of
        its virtual functions.
    :param kind: ``physical`` or ``virtual``; empty if ``function`` is the device itself.
    """

    device: PciAddress
    holder: str
    function: PciAddress
    kind: str = ""

    def __str__(self) -> str:
        if not self.kind:
            return f"domain {self.holder} already has it; remove it there first"
        return (
            f"domain {self.holder} has its {self.kind} function {self.function}, and only one of "
            "them can be used; remove that first"
        )


def holdings(
    name: str,
    devices: Iterable[PciAddress],
    holders: Iterable[tuple[PciAddress, str]],
    nodes: Mapping[PciAddress, PciFunction],
) -> Iterator[Holding]:
    """Yield devices that guests other than ``name`` have, and functions of them that any guest has.

    :param holders: assigned devices, each with the guest that has it, in its definition or as it
        runs.
    :param nodes: the devices as libvirt describes them.
    """
    holder_of: dict[PciAddress, str] = {}
    for device, holder in holders:
        if holder != name or device not in holder_of:
            holder_of[device] = holder
    for device in devices:
        holder = holder_of.get(device, name)
        if holder != name:
            yield Holding(device, holder, device)
        node = nodes.get(device)
        if node is None:
            continue
        for other in (node.physical_function, *node.virtual_functions):
            if other is not None and other in holder_of:
                kind = "physical" if other == node.physical_function else "virtual"
                yield Holding(device, holder_of[other], other, kind)
