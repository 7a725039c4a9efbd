"""Bind guest MSIs in the kernel: have its bindings converge to what the guests wrote.

The kernel has the state, and its file is read before each change, so that the process may be
killed at any time, and so that bindings made by hand are kept where they are right.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.domxml.guest_domain import VIRT_DOORBELL
from vmm_msi.errors import BackendError, HypervisorError, VmmMsiError
from vmm_msi.host.msi_bindings import (
    BindingAllocator,
    BindingCommand,
    GiovaSource,
    KernelBinding,
    MsiBindingsFile,
)
from vmm_msi.types import BindOrder, Granule
from vmm_msi.types.guest import FIRST_GIOVA
from vmm_msi.watch.guest_msi import GuestMsiReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.host.msi_bindings import MsiBindings
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.types import Iova, PciAddress

#: The smallest page of a guest's stage 1. A doorbell lies at the begin of a page of 64 KiB, so that
#: the bits of a larger page matter neither for the address in the device nor for the mapping.
_PAGE = Granule.K4


@dataclass(frozen=True, slots=True)
class BindingPlan:
    """What to do so that the kernel has the right binding of a device.

    :param binding: the binding that the kernel has to have.
    :param before: the bindings that it has.
    :param commands: what to write; none if it has that binding alone.
    """

    binding: KernelBinding
    source: GiovaSource
    before: tuple[KernelBinding, ...]
    commands: tuple[BindingCommand, ...]

    @property
    def device(self) -> PciAddress:
        """The device."""
        return self.binding.device


@dataclass(frozen=True, slots=True)
class BindingResult:
    """A plan that was applied, or why the device has no plan.

    :param error: why it has no plan, or the first refusal; the rest of the plan was not tried.
    :param unread: why the addresses that the guest wrote could not be read.
    """

    device: PciAddress
    plan: BindingPlan | None
    error: VmmMsiError | None = None
    unread: HypervisorError | None = None


def plan_binding(
    content: MsiBindings,
    device: PciAddress,
    allocator: BindingAllocator,
    written: Sequence[Iova] | None,
) -> BindingPlan:
    """Plan the commands after which a device has one binding, with the right gIOVA.

    :param content: what the kernel has now.
    :param written: the addresses that the guest wrote into the device's MSIs; none if it wrote none
        yet or if they cannot be read.
    :raise BackendError: ENODEV if no VMM uses the device through an iommufd, or if it has not
        attached it and the allocator cannot be set yet.
    """
    function = content.functions.get(device)
    if function is None:
        raise BackendError(
            errno.ENODEV, f"{device}: not bound to an iommufd; start the guest that has it"
        )
    direct = allocator is BindingAllocator.DIRECT
    if function.nest_parent is None and not direct:
        raise BackendError(
            errno.ENODEV, f"{device}: the VMM has not attached it to a stage 2 yet; try again"
        )
    before = content.of(device)
    binding, source = _binding(device, before, written)
    commands = []
    current = list(before)
    if function.nest_parent is not None and function.allocator != allocator:
        # The kernel refuses another allocator while the stage 2 has bindings.
        commands = [BindingCommand.unbind(device, b.giova) for b in before if not b.pending]
        commands.append(BindingCommand.allocator(device, allocator))
        current = [b for b in before if b.pending]
    right = next((b for b in current if _is_same(b, binding)), None)
    replaces = direct and function.vdevice is not None
    stale = [b for b in current if b is not right and not (replaces and right is None)]
    # A list and a pending binding keep the old gDB of a gIOVA.
    first = [b for b in stale if b.giova == binding.giova]
    commands += [BindingCommand.unbind(device, b.giova) for b in first]
    if right is None:
        commands.append(BindingCommand.bind(binding))
    commands += [BindingCommand.unbind(device, b.giova) for b in stale if b not in first]
    if commands and not direct:
        commands.append(BindingCommand.prepare(device))
    return BindingPlan(binding, source, before, tuple(commands))


def _binding(
    device: PciAddress, before: Sequence[KernelBinding], written: Sequence[Iova] | None
) -> tuple[KernelBinding, GiovaSource]:
    wanted = partial(KernelBinding, device, gdb=VIRT_DOORBELL, page_shift=_PAGE.bit_length() - 1)
    if written:
        return wanted(giova=written[0].align_down(_PAGE)), GiovaSource.GUEST
    if before:
        return wanted(giova=before[0].giova), GiovaSource.KERNEL
    return wanted(giova=FIRST_GIOVA), GiovaSource.PREDICTED


def _is_same(binding: KernelBinding, other: KernelBinding) -> bool:
    return replace(binding, pending=False, hpa=None, used=False) == other


def in_order(plans: Sequence[BindingPlan], order: BindOrder) -> Iterator[BindingCommand]:
    """Yield the commands of plans: device by device, or all bindings before any ``prepare``."""
    commands = [command for plan in plans for command in plan.commands]
    if order is BindOrder.BATCHED:
        commands.sort(key=lambda command: command.verb == "prepare")
    yield from commands


def withdrawal(content: MsiBindings, device: PciAddress) -> list[BindingCommand]:
    """Return the commands that withdraw every binding of a device."""
    return [BindingCommand.unbind(device, binding.giova) for binding in content.of(device)]


class KernelBinder:
    """Binds the devices of running guests in this machine's kernel; for one thread.

    :param file: the kernel's file.
    """

    def __init__(self, file: MsiBindingsFile | None = None) -> None:
        self.file = file or MsiBindingsFile()
        self._readers: dict[str, tuple[DomainXml, GuestMsiReader]] = {}

    def plans(
        self,
        connection: Connection,
        uuid: str,
        xml: DomainXml,
        allocators: Mapping[PciAddress, BindingAllocator],
    ) -> Iterator[BindingResult]:
        """Yield a plan for each device of a guest, or why it has no plan.

        :param xml: its live XML.
        :param allocators: the devices, and the allocator of each.
        :raise UnreadableError: when the kernel's file cannot be read.
        :raise HypervisorError: when the connection is lost.
        """
        content = self.file.read()
        reader = self._reader(connection, uuid, xml)
        for device, allocator in allocators.items():
            written, unread = None, None
            if device in content.functions:
                try:
                    written = reader.written(device)
                except HypervisorError as error:
                    if not connection.is_alive():
                        raise
                    unread = error
            try:
                plan = plan_binding(content, device, allocator, written)
            except BackendError as error:
                yield BindingResult(device, None, error)
            else:
                yield BindingResult(device, plan, unread=unread)

    def converge(
        self,
        connection: Connection,
        uuid: str,
        xml: DomainXml,
        allocators: Mapping[PciAddress, BindingAllocator],
    ) -> list[BindingResult]:
        """Apply the plan of each device, device by device; parameters as in :meth:`plans`."""
        return [self._applied(result) for result in self.plans(connection, uuid, xml, allocators)]

    def _applied(self, result: BindingResult) -> BindingResult:
        try:
            for command in result.plan.commands if result.plan is not None else ():
                self.file.run(command)
        except BackendError as error:
            return replace(result, error=error)
        return result

    def withdraw(self, devices: Sequence[PciAddress]) -> None:
        """Withdraw every binding of devices; a binding that is gone meanwhile is not an error.

        :raise UnreadableError: when the kernel's file cannot be read.
        :raise BackendError: when the kernel refuses.
        """
        content = self.file.read() if devices else None
        for device in devices:
            for command in withdrawal(content, device) if content is not None else ():
                try:
                    self.file.run(command)
                except BackendError as error:
                    if error.errno not in {errno.ENOENT, errno.ENODEV}:
                        raise

    def forget(self, uuid: str) -> None:
        """Drop what is known of a guest that stopped."""
        self._readers.pop(uuid, None)

    def _reader(self, connection: Connection, uuid: str, xml: DomainXml) -> GuestMsiReader:
        known = self._readers.get(uuid)
        if known is None or known[0] is not xml:
            known = xml, GuestMsiReader(xml, partial(connection.memory, uuid))
            self._readers[uuid] = known
        return known[1]
