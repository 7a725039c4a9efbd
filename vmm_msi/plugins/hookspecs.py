"""The plugin contract: the hooks that vmm-msi calls, and the types they exchange.

A plugin is an object with hook implementations, registered under the entry-point group
``vmm_msi``: an instance of a subclass of :class:`~vmm_msi.plugins.strategy.Strategy`,
:class:`~vmm_msi.plugins.base.ItsSelector` or :class:`~vmm_msi.plugins.base.Observer`, or a module
of functions marked with :data:`hookimpl`. It is of one of these kinds:

* a *strategy* decides how a guest's doorbells are bound; vmm-msi calls the strategy hooks of the
  one that is selected for a device, and of no other;
* an *ITS selector* implements :func:`vmm_msi_select_its`; one is selected per guest;
* an *observer* sees every event and may veto; vmm-msi calls all observers;
* a *doctor rule* examines a host and a guest; vmm-msi runs all of them beside its own rules;
* a *host reader* reads a form of host description that vmm-msi does not know;
* a *report format* writes the results of ``compare`` in a form of its own.

Hooks return their value, or None; a hook that fails raises. Parameters are passed by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

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
    from vmm_msi.types.finding import Finding

PROJECT = "vmm_msi"
#: What the name of every hook starts with.
HOOK_PREFIX = f"{PROJECT}_"

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
    DOCTOR_RULE = "doctor-rule"
    HOST_READER = "host-reader"
    REPORT_FORMAT = "report-format"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of a strategy's options: a frozen struct whose fields all have defaults."""


@dataclass(frozen=True)
class Needs:
    """What a strategy requires of backend and guest, given its options.

    :param interface: the capability the strategy is about; the newest kernel profile that has it
        is chosen unless the user names one.
    :param capabilities: what the backend must be able to do, whatever the profile.
    :param rmr: the guest must honour RMR nodes.
    :param qemu: QEMU and the kernel bind the doorbells on a libvirt host by themselves.
    """

    interface: Capability
    capabilities: frozenset[Capability]
    rmr: bool = False
    qemu: bool = False


@dataclass(frozen=True)
class PluginInfo:
    """The description of a plugin.

    :param name: the name by which it is selected; unique.
    :param summary: one line.
    :param options: the type of a strategy's options.
    :param needs: returns a strategy's needs, given its options.
    :param guest: what a strategy requires of the guest, in a sentence.
    :param host: what it requires of the host, in a sentence.
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
    """One strategy with one set of options, at work for one guest on one backend.

    Every strategy hook gets it. A strategy is stateless; it keeps what it must remember of this
    guest in :meth:`state`.

    :param options: the strategy's options, of the type it declared.
    :param its_of: returns the ITS that the selected ITS selector names for a device.
    """

    host: HostTopology
    guest: GuestDomain
    backend: Backend
    strategy: str
    options: Options
    its_of: Callable[[PciAddress], int]
    _state: dict[type, object] = field(default_factory=dict, repr=False)

    def state(self, factory: type[StateT]) -> StateT:
        """Return this session's one object of type ``factory``, created at first use."""
        value = self._state.get(factory)
        if not isinstance(value, factory):
            value = self._state[factory] = factory()
        return value

    def options_as(self, kind: type[OptionsT]) -> OptionsT:
        """Return the options as ``kind``, the type the strategy declared.

        :raise TypeError: when the strategy declared another type.
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


@dataclass(frozen=True)
class Examined:
    """What a doctor rule examines; None and empty values are unknown.

    :param devices: the devices that are, or are to be, assigned.
    :param strategies: the strategy of each device, with its options as on the command line; empty
        if no guest is examined.
    :param kernel: release of the host's kernel.
    :param kernel_options: its configuration, names without ``CONFIG_``.
    :param kernel_parameters: parameters of its modules, by ``module.parameter``.
    :param kernel_log: lines of its log about SMMUs, ITSes, IOMMU groups and VFIO.
    :param libvirt: release of libvirt, such as (12, 8).
    :param qemu: release of QEMU.
    :param domain: name of the guest.
    :param domain_xml: its definition.
    :param read: returns the text of a file of the host, such as ``/proc/cmdline``; None if the
        host's files are not available, or it has no such file.
    """

    host: HostTopology
    devices: tuple[PciAddress, ...] = ()
    strategies: Mapping[PciAddress, str] = field(default_factory=dict)
    kernel: str | None = None
    kernel_options: Mapping[str, str] | None = None
    kernel_parameters: Mapping[str, str] = field(default_factory=dict)
    kernel_log: Sequence[str] = ()
    libvirt: tuple[int, ...] | None = None
    qemu: tuple[int, ...] | None = None
    domain: str | None = None
    domain_xml: str | None = None
    read: Callable[[str], str | None] = lambda _path: None


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
    :param values: results of the action: addresses as hex strings.
    :param error: why the action failed; empty when it did not.
    """

    action: Action
    guest: str
    strategy: str
    device: PciAddress | None = None
    values: Mapping[str, str | int] = field(default_factory=dict)
    error: str = ""


@hookspec
def vmm_msi_describe() -> PluginInfo:  # type: ignore[empty-body]
    """Describe the plugin.

    Called once, when the plugin is registered. The base classes implement it from their
    attributes.

    :return: name, kind and, for a strategy, its options and needs.

    Example, in a module of hook functions::

        @hookimpl
        def vmm_msi_describe():
            return PluginInfo(name="audit", kind=PluginKind.OBSERVER, summary="logs each event")
    """


@hookspec(firstresult=True)
def vmm_msi_plan_domain(session: Session) -> GuestPlan | None:
    """Decide which virtual SMMUs the guest gets and which device sits behind which.

    Called when an attach is planned, with every device of the guest in ``session.guest.devices``,
    before anything is changed.

    :return: the plan; None for one accelerated vSMMU per physical SMMU.
    :raise RefusedError: when the devices cannot be arranged.

    Example, a vSMMU for each device::

        def vmm_msi_plan_domain(self, session):
            devices = [device.host for device in session.guest.devices]
            return GuestPlan(
                tuple(VsmmuPlan(smmu_of(session, device), (device,)) for device in devices)
            )
    """


@hookspec
def vmm_msi_attach_domain(session: Session) -> None:
    """Prepare for a guest, before its first device is attached.

    Called once per session. A strategy checks the guest as a whole here, or advertises an RMR.

    :raise RefusedError: when the strategy cannot serve the guest as a whole.

    Example::

        def vmm_msi_attach_domain(self, session):
            session.backend.advertise_rmr(SW_MSI_WINDOW)
    """


@hookspec
def vmm_msi_attach_device(session: Session, device: PciAddress) -> None:
    """Attach one device to a stage 2 of the strategy's choice.

    Called once per device, in the guest's order.

    :param device: host address; see ``session.host_device`` and ``session.guest_device``.
    :raise RefusedError: the strategy's or the kernel's refusal; the strategy undoes what it did.

    Example, a stage 2 for each device::

        def vmm_msi_attach_device(self, session, device):
            session.state(S2Pool).attach(session, device, key=device)
    """


@hookspec
def vmm_msi_bind_doorbell(session: Session, device: PciAddress) -> None:
    """Bind the guest's doorbell for one attached device.

    Called after :func:`vmm_msi_attach_device`, when the guest has mapped its gIOVA.

    :raise RefusedError: as for attach.

    Example, gDB -> hDB in the device's stage 2::

        def vmm_msi_bind_doorbell(self, session, device):
            s2 = session.state(S2Pool).of(device)
            session.state(DoorbellMaps).acquire(session, device, s2)
    """


@hookspec(firstresult=True)
def vmm_msi_prepare_msi(session: Session, device: PciAddress) -> Iova | None:
    """Enable the device's MSIs, which writes its doorbell address.

    Called after :func:`vmm_msi_bind_doorbell` of the same device (interleaved order) or of all
    devices (batched order).

    :return: the address in the device.
    :raise RefusedError: as for attach.

    Example, the guest's own gIOVA instead of the kernel's choice::

        def vmm_msi_prepare_msi(self, session, device):
            return session.state(DoorbellMaps).program(session, device)
    """


@hookspec
def vmm_msi_unbind_doorbell(session: Session, device: PciAddress) -> None:
    """Undo :func:`vmm_msi_bind_doorbell`.

    Called at detach and when a later step of attach failed, for each device whose bind returned;
    the device's MSIs may still be enabled. Must not raise for a doorbell that is already unbound.

    Example::

        def vmm_msi_unbind_doorbell(self, session, device):
            session.state(DoorbellMaps).release(session, device)
    """


@hookspec
def vmm_msi_detach_device(session: Session, device: PciAddress) -> None:
    """Undo :func:`vmm_msi_attach_device`, and free a stage 2 that no device uses any more.

    Called after :func:`vmm_msi_unbind_doorbell` of the same device.

    Example::

        def vmm_msi_detach_device(self, session, device):
            session.state(S2Pool).detach(session, device)
    """


@hookspec
def vmm_msi_detach_domain(session: Session) -> None:
    """Undo :func:`vmm_msi_attach_domain`, after the last device was detached.

    Example::

        def vmm_msi_detach_domain(self, session):
            session.backend.withdraw_rmr()
    """


@hookspec(firstresult=True)
def vmm_msi_select_its(device: HostDevice, host: HostTopology) -> int | None:
    """Name the physical ITS whose doorbell is bound for ``device``.

    Called once per device and session, when a strategy asks for the device's ITS.

    :return: the id of one of ``device.its_group``; None for the first of them.

    Example::

        def vmm_msi_select_its(self, device, host):
            return device.its_group[-1]
    """


@hookspec
def vmm_msi_veto(event: Event) -> str | None:
    """Object to an action, before it happens.

    Called on every observer for every action that attaches a guest or a device, binds a doorbell
    or enables MSIs.

    :return: the reason for the veto; None to allow the action.

    Example::

        def vmm_msi_veto(self, event):
            return "no new devices on this host" if event.action == "attach-device" else None
    """


@hookspec
def vmm_msi_observe(event: Event) -> None:
    """Take note of an action: called on every observer after every action, failed ones too.

    An exception from an observer is reported as a warning and changes nothing.

    Example::

        def vmm_msi_observe(self, event):
            logging.getLogger("audit").info("%s %s", event.action, event.device or event.guest)
    """


@hookspec(firstresult=True)
def vmm_msi_examine(examined: Examined) -> Iterable[Finding] | None:
    """Examine a host, its devices and a guest, as the doctor's own rules do.

    Called by doctor, attach, render and compare on every doctor rule. An error refuses attach and
    render.

    :return: the findings; each id starts with the plugin's name and ``-``.

    Example::

        def vmm_msi_examine(self, examined):
            if examined.kernel is not None and "-rt" in examined.kernel:
                yield Finding(
                    id="site-kernel-rt",
                    severity=Severity.ERROR,
                    subject="host",
                    evidence=(Evidence("/proc/sys/kernel/osrelease", examined.kernel),),
                    consequence="Guests with assigned devices do not run on our RT kernels.",
                    remedy="Boot the stock kernel.",
                )
    """


@hookspec(firstresult=True)
def vmm_msi_finding_page(finding: str) -> str | None:
    r"""Return the page about a finding of the doctor rule, for ``doctor --explain ID``.

    :param finding: the id.
    :return: Markdown, beginning with ``# ID: title``; None if the rule has no such finding.

    Example::

        def vmm_msi_finding_page(self, finding):
            pages = {"site-kernel-rt": "# site-kernel-rt: RT kernel\n\nBoot the stock kernel.\n"}
            return pages.get(finding)
    """


@hookspec(firstresult=True)
def vmm_msi_read_host(name: str, content: bytes) -> HostTopology | None:
    r"""Read a file that describes a host, in a form that vmm-msi does not know.

    Called on every host reader, by name, for a HOST that is a file of none of vmm-msi's own forms.

    :param name: path of the file, for messages and ``HostTopology.source``.
    :param content: the whole file, 32 MiB at most.
    :return: the host; None if the file is of another form.
    :raise TopologyError: when the file is of the form and malformed; the message names the place.

    Example::

        def vmm_msi_read_host(self, name, content):
            if not content.startswith(b"SITE-HOST 1\n"):
                return None
            itses = content.splitlines()[1:]
            return HostTopology(
                source=name,
                granule=Granule.K4,
                smmus=(Smmu(0),),
                itses=tuple(Its(i, Pa(int(base, 16))) for i, base in enumerate(itses)),
            )
    """


@hookspec(firstresult=True)
def vmm_msi_format_comparison(document: Mapping[str, Any]) -> bytes:  # type: ignore[empty-body]
    r"""Write the results of ``compare`` for ``--format NAME``, NAME being the plugin's name.

    :param document: what ``--format json`` prints: docs/schemas/compare.json.
    :return: what is written to standard output or to the FILE of ``-o``.

    Example::

        def vmm_msi_format_comparison(self, document):
            names = [result["strategy"] for result in document["results"]]
            return "".join(f"{name}\n" for name in names).encode()
    """
