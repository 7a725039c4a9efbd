"""The plugin contract: the hooks that vmm-msi calls, and the types they exchange.

A plugin is a module or an object registered under the entry-point group ``vmm_msi``. It is one of
three kinds, which :func:`vmm_msi_describe` tells:

* a *strategy* decides how a guest's doorbells are bound; the one that is selected for a device
  answers the strategy hooks, the others are not called;
* an *ITS selector* answers :func:`vmm_msi_select_its`; one is selected;
* an *observer* sees every event and may veto: all observers are called, always.

Mark implementations with :data:`hookimpl`. Parameters are passed by name and may be left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm_msi.iommu.backend import Backend, Capability
    from vmm_msi.types import (
        GuestDevice,
        GuestDomain,
        GuestPlan,
        HostDevice,
        HostTopology,
        Iova,
        PciAddress,
    )

PROJECT = "vmm_msi"

hookspec = pluggy.HookspecMarker(PROJECT)
#: Marks a function as the implementation of a hook.
hookimpl = pluggy.HookimplMarker(PROJECT)

StateT = TypeVar("StateT")
OptionsT = TypeVar("OptionsT", bound="Options")


class PluginKind(StrEnum):
    """What a plugin is for."""

    STRATEGY = "strategy"
    ITS_SELECTOR = "its-selector"
    OBSERVER = "observer"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of a strategy's options: a frozen struct whose fields all have defaults."""


@dataclass(frozen=True)
class Needs:
    """What a strategy needs, given its options.

    :param interface: the capability the strategy is about; the newest kernel profile that has it
        is chosen unless the user names one.
    :param capabilities: what the backend must be able to do, whatever the profile.
    :param rmr: the guest must honour RMR nodes.
    :param qemu: QEMU and the kernel carry it out on a libvirt host by themselves.
    """

    interface: Capability
    capabilities: frozenset[Capability]
    rmr: bool = False
    qemu: bool = False


@dataclass(frozen=True)
class PluginInfo:
    """What a plugin says of itself.

    :param name: the name by which it is selected; unique.
    :param summary: one line.
    :param options: the type of a strategy's options.
    :param needs: a function of the options that tells what a strategy needs.
    :param guest: what it asks of the guest, in a sentence.
    :param host: what it asks of the host, in a sentence.
    :param xml: what it writes into the domain XML, in a sentence.
    :param costs: what it costs, in a sentence.
    """

    name: str
    kind: PluginKind
    summary: str
    options: type[Options] = Options
    needs: Callable[[Any], Needs] | None = None
    guest: str = ""
    host: str = ""
    xml: str = ""
    costs: str = ""


@dataclass(frozen=True)
class Session:
    """One strategy at work for one guest on one backend.

    Given to every strategy hook. A strategy plugin is stateless; what it must remember for this
    guest it keeps in :meth:`state`.

    :param options: the strategy's options, of the type it declared.
    :param its_of: the ITS that the selected ITS selector names for a device.
    """

    host: HostTopology
    guest: GuestDomain
    backend: Backend
    strategy: str
    options: Options
    its_of: Callable[[PciAddress], int]
    _state: dict[type, object] = field(default_factory=dict, repr=False)

    def state(self, factory: type[StateT]) -> StateT:
        """Return this session's one object of type ``factory``, made at first use."""
        found = self._state.get(factory)
        if not isinstance(found, factory):
            found = self._state[factory] = factory()
        return found

    def options_as(self, kind: type[OptionsT]) -> OptionsT:
        """Return the options as ``kind``, the type the strategy declared.

        :raise TypeError: when they are of another type: the plugin is wrong.
        """
        if not isinstance(self.options, kind):
            raise TypeError(f"{self.strategy}: options are {type(self.options)}, not {kind}")
        return self.options

    def host_device(self, address: PciAddress) -> HostDevice:
        """Return the host's view of an assigned device."""
        return self.host.device_by_address[address]

    def guest_device(self, address: PciAddress) -> GuestDevice:
        """Return the guest's view of an assigned device."""
        return self.guest.device_by_address[address]


class Action(StrEnum):
    """What is about to happen or has happened."""

    ATTACH_DOMAIN = "attach-domain"
    DETACH_DOMAIN = "detach-domain"
    ATTACH_DEVICE = "attach-device"
    DETACH_DEVICE = "detach-device"
    BIND_DOORBELL = "bind-doorbell"
    UNBIND_DOORBELL = "unbind-doorbell"
    PREPARE_MSI = "prepare-msi"


@dataclass(frozen=True)
class Event:
    """One action on one guest.

    :param guest: name of the guest.
    :param strategy: name of the strategy at work.
    :param device: host address of the device, None for actions on the whole guest.
    :param values: what came of it: addresses as hex strings.
    :param error: why it failed; empty where it did not.
    """

    action: Action
    guest: str
    strategy: str
    device: PciAddress | None = None
    values: Mapping[str, str | int] = field(default_factory=dict)
    error: str = ""


@hookspec
def vmm_msi_describe() -> PluginInfo:  # type: ignore[empty-body]
    """Say what the plugin is.

    Called once, by the plugin host, when the plugin is registered; every plugin implements it.

    :return: name, kind and, for a strategy, its options and needs.

    Example::

        @hookimpl
        def vmm_msi_describe():
            return PluginInfo(name="audit", kind=PluginKind.OBSERVER, summary="logs each event")
    """


@hookspec(firstresult=True)
def vmm_msi_plan_domain(session: Session) -> GuestPlan | None:
    """Decide which virtual SMMUs the guest gets and which device sits behind which.

    Called when an attach is planned, with every device of the guest in ``session.guest.devices``,
    before anything is changed.

    :return: the plan; None from a strategy means one accelerated vSMMU per physical SMMU.
    :raise RefusedError: when the devices cannot be arranged.
    """


@hookspec(firstresult=True)
def vmm_msi_attach_domain(session: Session) -> object | None:
    """Prepare for a guest, before its first device is attached.

    Called once per session. A strategy advertises an RMR here.

    :return: ignored; None is fine.
    :raise RefusedError: when the guest as a whole cannot be served.
    """


@hookspec(firstresult=True)
def vmm_msi_attach_device(session: Session, device: PciAddress) -> object | None:
    """Attach one device to a stage 2 of the strategy's choice.

    Called once per device, in the guest's order.

    :param device: host address; see ``session.host_device`` and ``session.guest_device``.
    :return: anything but None: the strategy attached the device.
    :raise RefusedError: the strategy's or the kernel's refusal; the strategy leaves nothing behind.
    """


@hookspec(firstresult=True)
def vmm_msi_bind_doorbell(session: Session, device: PciAddress) -> object | None:
    """Bind the guest's doorbell for one attached device.

    Called after :func:`vmm_msi_attach_device`, when the guest has mapped its gIOVA. A strategy
    that has nothing to bind returns None.

    :raise RefusedError: as for attach.
    """


@hookspec(firstresult=True)
def vmm_msi_prepare_msi(session: Session, device: PciAddress) -> Iova | None:
    """Have the device's MSIs enabled and its doorbell address written.

    Called after :func:`vmm_msi_bind_doorbell` of the same device (interleaved order) or of all
    devices (batched order).

    :return: the address in the device.
    :raise RefusedError: as for attach.
    """


@hookspec(firstresult=True)
def vmm_msi_unbind_doorbell(session: Session, device: PciAddress) -> object | None:
    """Undo :func:`vmm_msi_bind_doorbell`.

    Called at detach and when a later step of attach failed, for each device whose bind returned;
    the device's MSIs may still be enabled. Must not raise for what is gone already.
    """


@hookspec(firstresult=True)
def vmm_msi_detach_device(session: Session, device: PciAddress) -> object | None:
    """Undo :func:`vmm_msi_attach_device`, and free a stage 2 that no device uses any more.

    Called after :func:`vmm_msi_unbind_doorbell` of the same device.
    """


@hookspec(firstresult=True)
def vmm_msi_detach_domain(session: Session) -> object | None:
    """Undo :func:`vmm_msi_attach_domain`, after the last device was detached."""


@hookspec(firstresult=True)
def vmm_msi_select_its(device: HostDevice, host: HostTopology) -> int | None:
    """Name the physical ITS whose doorbell is bound for ``device``.

    Called once per device and session, by strategies that need the doorbell at bind time. The
    selected ITS selector answers first, ``first-in-group`` for what it leaves (None).

    :return: the id of one of ``device.its_group``.
    """


@hookspec
def vmm_msi_veto(event: Event) -> str | None:
    """Object to an action, before it happens.

    Called on every observer for every action of a device or a guest that is about to be attached.

    :return: the reason why it must not happen; None where there is no objection.
    """


@hookspec
def vmm_msi_observe(event: Event) -> None:
    """Learn what happened: called on every observer after every action, failed ones too.

    An exception from an observer is reported as a warning and changes nothing.
    """
