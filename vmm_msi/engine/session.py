"""One guest, brought up and taken down step by step by the strategies chosen for its devices.

The order of calls, what is undone when one fails, and what observers learn is decided here, once,
for the model and for a real kernel alike.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError, PluginError, RefusedError, VmmMsiError
from vmm_msi.plugins.hookspecs import Action, Event, PluginKind, Session
from vmm_msi.types import BindOrder, GuestPlan, Outcome, Verdict, VsmmuPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from vmm_msi.config import Choice
    from vmm_msi.iommu.backend import Backend, BackendInfo
    from vmm_msi.plugins.hookspecs import Needs, Options
    from vmm_msi.plugins.manager import PluginManager, StrategyHooks
    from vmm_msi.types import GuestDomain, HostDevice, HostTopology, Iova, PciAddress


def check_needs(name: str, needs: Needs, info: BackendInfo) -> None:
    """Compare what a strategy needs with what a backend can do.

    :raise RefusedError: when something is missing; nothing was touched.
    """
    missing = sorted(needs.capabilities - info.capabilities)
    if missing:
        raise RefusedError(
            f"strategy {name}: the backend {info.name} ({info.profile}) lacks "
            f"{', '.join(missing)}; it has {', '.join(sorted(info.capabilities))}"
            f"{info.advice and f'; {info.advice}'}"
        )


def refusal(device: HostDevice, error: RefusedError) -> Verdict:
    """Return the verdict of a device that was refused."""
    return Verdict(
        device.address,
        0,
        device.vectors,
        Outcome.REFUSED,
        None,
        device.its,
        errno=error.errno if isinstance(error, BackendError) else None,
        reason=str(error),
    )


class _Part:
    """One strategy with one set of options, at work for some of the guest's devices."""

    def __init__(self, session: Session, hooks: StrategyHooks) -> None:
        self.session = session
        self.hooks = hooks
        self.started = False


class GuestSession:
    """A guest on a backend, with a strategy for each device.

    :param choice_of: the strategy chosen for each device of ``guest``.
    :param selector: name of the ITS selector.
    :param rehearsal: observers may object, but are not told: nothing really happens.
    :param known: devices that are up already: bringing them up here follows what happened, so
        observers are neither asked nor told of it. Taking them down is news.
    :raise RefusedError: when the backend cannot do what a strategy needs.
    :raise UsageError: for an unknown strategy, option or selector.
    """

    def __init__(
        self,
        plugins: PluginManager,
        host: HostTopology,
        guest: GuestDomain,
        backend: Backend,
        choice_of: Mapping[PciAddress, Choice],
        selector: str,
        *,
        rehearsal: bool = False,
        known: Collection[PciAddress] = (),
    ) -> None:
        plugins.info(selector, PluginKind.ITS_SELECTOR)
        self.backend = backend
        self.guest = guest
        self.host = host
        self._plugins = plugins
        self._selector = selector
        self._observed = plugins.has_observers
        self._rehearsal = rehearsal
        self._known = frozenset(known)
        self._its: dict[PciAddress, int] = {}
        self._parts: dict[tuple[str, Options], _Part] = {}
        self._part_of: dict[PciAddress, _Part] = {}
        self._undo: dict[PciAddress, list[Callable[[], None]]] = {}
        options_of = {c: plugins.options(c.strategy, c.options) for c in set(choice_of.values())}
        for address, choice in choice_of.items():
            # However the options were written: what is the same strategy shares its stage 2.
            key = (choice.strategy, options_of[choice])
            if key not in self._parts:
                self._parts[key] = self._part(*key)
            self._part_of[address] = self._parts[key]
        self._known_parts = {id(self._part_of[address]) for address in self._known}

    def _part(self, strategy: str, options: Options) -> _Part:
        needs = self._plugins.needs(strategy, options)
        check_needs(strategy, needs, self.backend.info)
        session = Session(
            host=self.host,
            guest=self.guest,
            backend=self.backend,
            strategy=strategy,
            options=options,
            its_of=self.its_of,
        )
        return _Part(session, self._plugins.hooks(strategy))

    def its_of(self, device: PciAddress) -> int:
        """Return the ITS that the selector names for a device, asked once."""
        if device not in self._its:
            host_device = self.host.device_by_address[device]
            self._its[device] = self._plugins.select_its(self._selector, host_device, self.host)
        return self._its[device]

    def plan(self) -> GuestPlan:
        """Return what the strategies want in the domain XML, all parts together.

        :raise RefusedError: when a strategy cannot arrange its devices.
        :raise PluginError: when a strategy fails, or its plan does not have each device once.
        """
        plans = []
        for part in self._parts.values():
            mine = [d.host for d in self.guest.devices if self._part_of.get(d.host) is part]
            plans.append(self._plan_part(part, mine))
        vsmmus = tuple(vsmmu for plan in plans for vsmmu in plan.vsmmus)
        return GuestPlan(vsmmus, iommufd=any(plan.iommufd for plan in plans))

    def _plan_part(self, part: _Part, mine: list[PciAddress]) -> GuestPlan:
        name = part.session.strategy
        try:
            plan = part.hooks.plan_domain(part.session)
        except VmmMsiError:
            raise
        except Exception as error:
            raise PluginError(
                f"strategy {name}: planning {self.guest.name} failed with "
                f"{type(error).__name__}: {error}"
            ) from error
        if plan is None:
            by_smmu: dict[int, list[PciAddress]] = {}
            for device in mine:
                smmu = self.host.device_by_address[device].smmu
                if smmu is None:
                    raise RefusedError(f"{device}: is behind no SMMU")
                by_smmu.setdefault(smmu, []).append(device)
            return GuestPlan(
                tuple(VsmmuPlan(smmu, tuple(found)) for smmu, found in by_smmu.items())
            )
        members = set(mine)
        vsmmus = []
        for vsmmu in plan.vsmmus:
            kept = tuple(device for device in vsmmu.devices if device in members)
            if kept:
                vsmmus.append(VsmmuPlan(vsmmu.smmu, kept, vsmmu.its, vsmmu.accelerated))
        for vsmmu in vsmmus:
            for device in vsmmu.devices:
                smmu = self.host.device_by_address[device].smmu
                if smmu != vsmmu.smmu:
                    raise PluginError(
                        f"strategy {name}: its plan of {self.guest.name} has {device} behind a "
                        f"vSMMU for SMMU {vsmmu.smmu}; valid is SMMU {smmu}"
                    )
        planned = sorted(device for vsmmu in vsmmus for device in vsmmu.devices)
        if planned != sorted(mine):
            raise PluginError(
                f"strategy {name}: its plan of {self.guest.name} has "
                f"{', '.join(map(str, planned)) or 'no device'}; valid is each of its devices "
                f"once: {', '.join(map(str, sorted(mine)))}"
            )
        return GuestPlan(tuple(vsmmus), plan.iommufd)

    def attach(self, device: PciAddress) -> None:
        """Attach one device; the first of a strategy starts that strategy for the guest.

        :raise RefusedError: the refusal; nothing is left behind.
        """
        part = self._part_of[device]
        if not part.started:
            with self._step(Action.ATTACH_DOMAIN, part):
                part.hooks.attach_domain(part.session)
            part.started = True
        with self._step(Action.ATTACH_DEVICE, part, device):
            hw_msi = self.host.device_by_address[device].hw_msi
            if hw_msi is not None:
                raise BackendError(
                    errno.EINVAL,
                    f"{device}: has the reserved region {hw_msi}, MSIs to it bypass the SMMU, so "
                    "nested translation cannot be used; assign a device without one",
                )
            part.hooks.attach_device(part.session, device)
        undo = self._undo[device] = []
        undo.append(lambda: self._detach_device(part, device))

    def bind(self, device: PciAddress) -> None:
        """Bind the doorbell of an attached device.

        :raise RefusedError: the refusal; the device stays attached.
        """
        part = self._part_of[device]
        with self._step(Action.BIND_DOORBELL, part, device):
            part.hooks.bind_doorbell(part.session, device)
        self._undo[device].append(lambda: self._unbind_doorbell(part, device))

    def prepare(self, device: PciAddress) -> Iova:
        """Enable the MSIs of a device whose doorbell is bound.

        :raise RefusedError: the refusal; the device stays attached and bound.
        """
        part = self._part_of[device]
        values: dict[str, str | int] = {}
        with self._step(Action.PREPARE_MSI, part, device, values):
            programmed = part.hooks.prepare_msi(part.session, device)
            values["programmed_iova"] = str(programmed)
        return programmed

    def take_down(self, device: PciAddress) -> None:
        """Undo what was done for a device, in reverse; a step that fails keeps none from theirs.

        :raise VmmMsiError: the first failure, after all steps.
        """
        self._finish(reversed(self._undo.pop(device, [])))

    def _detach_device(self, part: _Part, device: PciAddress) -> None:
        with self._step(Action.DETACH_DEVICE, part, device):
            part.hooks.detach_device(part.session, device)

    def _unbind_doorbell(self, part: _Part, device: PciAddress) -> None:
        with self._step(Action.UNBIND_DOORBELL, part, device):
            part.hooks.unbind_doorbell(part.session, device)

    def stop(self) -> None:
        """Take every device down, then end the strategies for this guest.

        :raise VmmMsiError: the first failure, after everything was tried.
        """
        steps = [partial(self.take_down, device) for device in self._undo]
        steps += [partial(self._end, part) for part in self._parts.values() if part.started]
        self._finish(steps)

    def end_unused(self) -> None:
        """End the strategies that have no device any more.

        :raise VmmMsiError: the first failure, after everything was tried.
        """
        used = {id(self._part_of[device]) for device in self._undo}
        parts = [part for part in self._parts.values() if part.started and id(part) not in used]
        self._finish(partial(self._end, part) for part in parts)

    def _end(self, part: _Part) -> None:
        part.started = False
        with self._step(Action.DETACH_DOMAIN, part):
            part.hooks.detach_domain(part.session)

    @staticmethod
    def _finish(steps: Iterable[Callable[[], None]]) -> None:
        failures = []
        for step in steps:
            try:
                step()
            except VmmMsiError as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    def attach_all(self) -> None:
        """Bring every device up, or none.

        :raise RefusedError: the first refusal, after everything was taken down again.
        """
        try:
            for device, step in self._schedule():
                step(device)
        except BaseException as failure:
            try:
                self.stop()
            except VmmMsiError as again:
                failure.add_note(f"taking it down again failed too: {again}")
            raise

    def try_all(self) -> Iterator[Verdict]:
        """Bring up what can be brought up and yield a verdict for every device, in order.

        A device that is refused at one step is taken down and left out of the later steps.
        """
        refused: dict[PciAddress, Verdict] = {}
        for device, step in self._schedule():
            if device in refused:
                continue
            try:
                step(device)
            except RefusedError as error:
                refused[device] = refusal(self.host.device_by_address[device], error)
                self.take_down(device)
        for guest_device in self.guest.devices:
            address = guest_device.host
            verdict = refused.get(address)
            yield verdict if verdict is not None else self.deliver(address)

    def deliver(self, device: PciAddress) -> Verdict:
        """Raise the MSIs of a device that was brought up and see where they land.

        :raise PluginError: when its strategy did not enable them.
        """
        try:
            return self.backend.deliver(device)
        except BackendError as error:
            strategy = self._part_of[device].session.strategy
            raise PluginError(
                f"strategy {strategy}: says that the MSIs of {device} are enabled: {error}"
            ) from error

    def _schedule(self) -> Iterator[tuple[PciAddress, Callable[[PciAddress], object]]]:
        addresses = [device.host for device in self.guest.devices]
        if self.guest.order is BindOrder.INTERLEAVED:
            for address in addresses:
                yield address, self.attach
                yield address, self.bind
                yield address, self.prepare
            return
        for address in addresses:
            yield address, self.attach
            yield address, self.bind
        for address in addresses:
            yield address, self.prepare

    @contextmanager
    def _step(
        self,
        action: Action,
        part: _Part,
        device: PciAddress | None = None,
        values: Mapping[str, str | int] | None = None,
    ) -> Iterator[None]:
        """Ask the observers, do it, tell the observers; name the plugin that breaks."""
        name = part.session.strategy
        event = None
        if self._observed and (action in _UNDOING or not self._is_known(part, device)):
            event = Event(action, self.guest.name, name, device, {} if values is None else values)
        try:
            if event is not None and action not in _UNDOING:
                self._plugins.veto(event)
            yield
        except VmmMsiError as error:
            self._notify(event, str(error))
            raise
        except Exception as error:
            self._notify(event, str(error))
            raise PluginError(
                f"strategy {name}: {action} of {device or self.guest.name} failed with "
                f"{type(error).__name__}: {error}"
            ) from error
        self._notify(event)

    def _is_known(self, part: _Part, device: PciAddress | None) -> bool:
        """Tell whether a device, or the guest where it is None, was brought up before."""
        return id(part) in self._known_parts if device is None else device in self._known

    def _notify(self, event: Event | None, error: str = "") -> None:
        if event is not None and not self._rehearsal:
            told = Event(
                event.action, event.guest, event.strategy, event.device, event.values, error
            )
            self._plugins.notify(told)


_UNDOING = frozenset({Action.DETACH_DOMAIN, Action.DETACH_DEVICE, Action.UNBIND_DOORBELL})


def outcomes(verdicts: Iterable[Verdict]) -> dict[Outcome, int]:
    """Count MSIs by outcome, every outcome named."""
    counts = dict.fromkeys(Outcome, 0)
    for verdict in verdicts:
        counts[verdict.outcome] += verdict.count
    return counts
