"""One guest, attached and detached step by step by the strategies chosen for its devices.

The order of calls, what is undone when one fails, and what observers are notified of is decided
here, once, for the simulator and for a real kernel alike.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self

from vmm_msi.errors import (
    BackendError,
    PluginError,
    RefusedError,
    Rule,
    VetoError,
    VmmMsiError,
)
from vmm_msi.iommu import rules
from vmm_msi.plugins.hookspecs import Action, Event, PluginKind, Session
from vmm_msi.quantity import quantity
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

    :raise RefusedError: when a capability is missing; nothing was changed.
    """
    missing = sorted(needs.capabilities - info.capabilities)
    if missing:
        raise RefusedError(
            f"strategy {name}: the backend {info.name} ({info.profile}) lacks "
            f"{', '.join(missing)}; it has {', '.join(sorted(info.capabilities))}"
            f"{info.advice and f'; {info.advice}'}"
        )


def refusal(device: HostDevice, error: RefusedError, strategy: str) -> Verdict:
    """Return the verdict of a device that was refused.

    :param strategy: name of its strategy, which refuses what no kernel does.
    """
    kernel = error if isinstance(error, BackendError) else None
    decider = error if kernel is not None else error.__cause__
    if isinstance(decider, BackendError):
        rule = decider.decided_by
    elif isinstance(error, VetoError):
        rule = Rule("an observer may veto what it does not permit", "vmm_msi_veto, a plugin")
    else:
        rule = Rule(
            "the strategy itself refuses what it cannot serve, for the reason above",
            f"strategy {strategy}",
        )
    return Verdict(
        device.address,
        0,
        device.vectors,
        Outcome.REFUSED,
        None,
        device.its,
        errno=None if kernel is None else kernel.errno,
        errno_inside=None if kernel is None else kernel.inside,
        reason=str(error),
        decided_by=rule,
    )


def _check_guest_vfio(guest: GuestDomain, device: PciAddress, strategy: str) -> None:
    """Check that VFIO in the guest takes a device although the guest has an RMR node.

    :raise BackendError: EINVAL in the guest: a region of type ``direct`` keeps its kernel from
        blocking the device (Linux ``drivers/iommu/iommu.c`` iommu_device_claim_dma_owner,
        __iommu_device_set_domain).
    """
    if guest.honours_rmr and guest.device_by_address[device].vfio:
        raise rules.DIRECT_REGION_GUEST.refusal(
            errno.EINVAL,
            f"{device}: VFIO in the guest refuses it (VFIO_DEVICE_BIND_IOMMUFD): the RMR node of "
            f"strategy {strategy} is a direct region there; use a driver of the guest, or a "
            "strategy without an RMR",
        )


class _StrategySession:
    """A strategy's session with its hooks; started while the guest is attached to the strategy."""

    def __init__(self, session: Session, hooks: StrategyHooks) -> None:
        self.session = session
        self.hooks = hooks
        self.started = False


class GuestSession:
    """A guest on a backend of its own, with a strategy for each device.

    As a context manager it detaches everything at the end.

    :param choice_of: the strategy chosen for each device of ``guest``.
    :param selector: name of the ITS selector.
    :param dry_run: observers may veto, but are not notified: nothing happens to a real guest.
    :param attached_before: devices that an earlier session attached: observers neither veto nor
        are notified when this one attaches them again, but are when it detaches them.
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
        dry_run: bool = False,
        attached_before: Collection[PciAddress] = (),
    ) -> None:
        plugins.info(selector, PluginKind.ITS_SELECTOR)
        self.backend = backend
        self.guest = guest
        self.host = host
        self._plugins = plugins
        self._selector = selector
        self._observed = plugins.has_observers
        self._dry_run = dry_run
        self._its: dict[PciAddress, int] = {}
        self._strategies: dict[tuple[str, Options], _StrategySession] = {}
        self._strategy_of: dict[PciAddress, _StrategySession] = {}
        self._undo: dict[PciAddress, list[Callable[[], None]]] = {}
        #: The first strategy that gives the guest an RMR node.
        self._rmr_from: str | None = None
        options_of = {c: plugins.options(c.strategy, c.options) for c in set(choice_of.values())}
        for address, choice in choice_of.items():
            # However the options were written: devices with the same strategy share its stage 2.
            key = (choice.strategy, options_of[choice])
            if key not in self._strategies:
                self._strategies[key] = self._open_strategy(*key)
            self._strategy_of[address] = self._strategies[key]
        self._devices_before = frozenset(attached_before)
        self._strategies_before = {id(self._strategy_of[a]) for a in attached_before}

    def _open_strategy(self, name: str, options: Options) -> _StrategySession:
        needs = self._plugins.needs(name, options)
        check_needs(name, needs, self.backend.info)
        if needs.rmr and self._rmr_from is None:
            self._rmr_from = name
        session = Session(
            host=self.host,
            guest=self.guest,
            backend=self.backend,
            strategy=name,
            options=options,
            its_of=self.its_of,
        )
        return _StrategySession(session, self._plugins.hooks(name))

    def its_of(self, device: PciAddress) -> int:
        """Return the ITS that the selector names for a device; the selector is called once."""
        if device not in self._its:
            host_device = self.host.device_by_address[device]
            self._its[device] = self._plugins.select_its(self._selector, host_device, self.host)
        return self._its[device]

    def plan(self) -> GuestPlan:
        """Return what the strategies plan for the domain XML, all of them together.

        :raise RefusedError: when a strategy cannot arrange its devices.
        :raise PluginError: when a strategy fails, or its plan does not have each device once.
        """
        plans = []
        for strategy in self._strategies.values():
            devices = [d.host for d in self.guest.devices]
            own = [device for device in devices if self._strategy_of.get(device) is strategy]
            plans.append(self._plan_strategy(strategy, own))
        vsmmus = tuple(vsmmu for plan in plans for vsmmu in plan.vsmmus)
        return GuestPlan(vsmmus, iommufd=any(plan.iommufd for plan in plans))

    def _plan_strategy(self, strategy: _StrategySession, devices: list[PciAddress]) -> GuestPlan:
        name = strategy.session.strategy
        try:
            plan = strategy.hooks.plan_domain(strategy.session)
        except VmmMsiError:
            raise
        except Exception as error:
            raise PluginError(
                f"strategy {name}: planning {self.guest.name} failed with "
                f"{type(error).__name__}: {error}"
            ) from error
        if plan is None:
            return self._default_plan(devices)
        members = set(devices)
        vsmmus = []
        for vsmmu in plan.vsmmus:
            kept = tuple(device for device in vsmmu.devices if device in members)
            if kept:
                vsmmus.append(replace(vsmmu, devices=kept))
        self._check_plan(name, vsmmus, devices)
        return GuestPlan(tuple(vsmmus), plan.iommufd)

    def _default_plan(self, devices: list[PciAddress]) -> GuestPlan:
        """Return a plan with one vSMMU per physical SMMU."""
        by_smmu: dict[int, list[PciAddress]] = {}
        for device in devices:
            smmu = self.host.device_by_address[device].smmu
            if smmu is None:
                raise RefusedError(f"{device}: not behind an SMMU; assign a device behind an SMMU")
            by_smmu.setdefault(smmu, []).append(device)
        return GuestPlan(
            tuple(VsmmuPlan(smmu, tuple(members)) for smmu, members in by_smmu.items())
        )

    def _check_plan(self, name: str, vsmmus: list[VsmmuPlan], devices: list[PciAddress]) -> None:
        for vsmmu in vsmmus:
            for device in vsmmu.devices:
                smmu = self.host.device_by_address[device].smmu
                if smmu != vsmmu.smmu:
                    raise PluginError(
                        f"strategy {name}: its plan of {self.guest.name} has {device} behind a "
                        f"vSMMU for SMMU {vsmmu.smmu}; valid: SMMU {smmu}"
                    )
        planned = sorted(device for vsmmu in vsmmus for device in vsmmu.devices)
        if planned != sorted(devices):
            raise PluginError(
                f"strategy {name}: its plan of {self.guest.name} has "
                f"{', '.join(map(str, planned)) or 'no device'}; valid: each of its devices "
                f"once: {', '.join(map(str, sorted(devices)))}"
            )

    def attach(self, device: PciAddress) -> None:
        """Attach one device; the first of a strategy attaches the guest to the strategy.

        :raise RefusedError: the refusal; the device is not attached.
        """
        strategy = self._strategy_of[device]
        if not strategy.started:
            with self._step(Action.ATTACH_DOMAIN, strategy):
                strategy.hooks.attach_domain(strategy.session)
            strategy.started = True
        with self._step(Action.ATTACH_DEVICE, strategy, device):
            hw_msi = self.host.device_by_address[device].hw_msi
            if hw_msi is not None:
                raise rules.HW_MSI.refusal(
                    errno.EINVAL,
                    f"{device}: has the reserved region {hw_msi}, MSIs to it bypass the SMMU, so "
                    "nested translation cannot be used; assign a device without one",
                )
            if self._rmr_from is not None:
                _check_guest_vfio(self.guest, device, self._rmr_from)
            strategy.hooks.attach_device(strategy.session, device)
        undo = self._undo[device] = []
        undo.append(lambda: self._detach_device(strategy, device))

    def bind(self, device: PciAddress) -> None:
        """Bind the doorbell of an attached device.

        :raise RefusedError: the refusal; the device stays attached.
        """
        strategy = self._strategy_of[device]
        with self._step(Action.BIND_DOORBELL, strategy, device):
            strategy.hooks.bind_doorbell(strategy.session, device)
        self._undo[device].append(lambda: self._unbind_doorbell(strategy, device))

    def prepare(self, device: PciAddress) -> Iova:
        """Enable the MSIs of a device whose doorbell is bound.

        :return: the address in the device.
        :raise RefusedError: the refusal; the device stays attached and bound.
        """
        strategy = self._strategy_of[device]
        values: dict[str, str | int] = {}
        with self._step(Action.PREPARE_MSI, strategy, device, values):
            programmed = strategy.hooks.prepare_msi(strategy.session, device)
            values["programmed_iova"] = str(programmed)
        return programmed

    def detach(self, device: PciAddress) -> None:
        """Undo the steps of a device in reverse order; a failing one does not stop the others.

        :raise VmmMsiError: the first failure, after all steps.
        """
        _run_all(reversed(self._undo.pop(device, [])))

    def _detach_device(self, strategy: _StrategySession, device: PciAddress) -> None:
        with self._step(Action.DETACH_DEVICE, strategy, device):
            strategy.hooks.detach_device(strategy.session, device)

    def _unbind_doorbell(self, strategy: _StrategySession, device: PciAddress) -> None:
        with self._step(Action.UNBIND_DOORBELL, strategy, device):
            strategy.hooks.unbind_doorbell(strategy.session, device)

    def detach_all(self) -> None:
        """Detach every device, then the guest from its strategies.

        :raise PluginError: when a stage 2 is left.
        :raise VmmMsiError: the first failure, after all steps.
        """
        started = [strategy for strategy in self._strategies.values() if strategy.started]
        steps = [partial(self.detach, device) for device in self._undo]
        steps += [partial(self._detach_domain, strategy) for strategy in started]
        _run_all(steps)
        left = self.backend.costs().s2_domains if started else 0
        if left:
            names = " or ".join(dict.fromkeys(s.session.strategy for s in started))
            raise PluginError(
                f"strategy {names}: {quantity(left, 'stage 2 table')} left after all devices were "
                "detached; free it in vmm_msi_detach_device, and when vmm_msi_attach_device fails"
            )

    def detach_unused_strategies(self) -> None:
        """Detach the guest from the strategies that have no device any more.

        :raise VmmMsiError: the first failure, after all steps.
        """
        used = {id(self._strategy_of[device]) for device in self._undo}
        _run_all(
            partial(self._detach_domain, strategy)
            for strategy in self._strategies.values()
            if strategy.started and id(strategy) not in used
        )

    def _detach_domain(self, strategy: _StrategySession) -> None:
        strategy.started = False
        with self._step(Action.DETACH_DOMAIN, strategy):
            strategy.hooks.detach_domain(strategy.session)

    def attach_all(self) -> None:
        """Attach and bind every device and enable its MSIs, or change nothing.

        :raise RefusedError: the first refusal, after everything was detached again.
        """
        try:
            for device, step in self._schedule():
                step(device)
        except BaseException as failure:
            self._detach_all_after(failure)
            raise

    def _detach_all_after(self, failure: BaseException) -> None:
        """Detach everything; a second failure is a note on the first."""
        try:
            self.detach_all()
        except VmmMsiError as second:
            failure.add_note(f"detaching failed, too: {second}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, failure: BaseException | None, _traceback: object) -> None:
        if failure is None:
            self.detach_all()
        else:
            self._detach_all_after(failure)

    def attach_and_deliver(self) -> Iterator[Verdict]:
        """Attach what is not refused, and yield a verdict for every device, in order.

        A device that is refused at one step is detached, and skipped in the later steps. A device
        whose MSIs get no address stays attached and bound until the others' are delivered, as it
        does in a guest.
        """
        refused: dict[PciAddress, Verdict] = {}
        for device, step in self._schedule():
            if device in refused:
                continue
            try:
                step(device)
            except RefusedError as error:
                strategy = self._strategy_of[device].session.strategy
                refused[device] = refusal(self.host.device_by_address[device], error, strategy)
                if step != self.prepare:
                    self.detach(device)
        for guest_device in self.guest.devices:
            address = guest_device.host
            verdict = refused.get(address)
            yield verdict if verdict is not None else self.deliver(address)
        for address in refused:
            self.detach(address)

    def deliver(self, device: PciAddress) -> Verdict:
        """Raise the MSIs of an attached device and return where they arrive.

        :raise PluginError: when the device's strategy did not enable them.
        """
        try:
            return self.backend.deliver(device)
        except BackendError as error:
            strategy = self._strategy_of[device].session.strategy
            raise PluginError(
                f"strategy {strategy}: vmm_msi_prepare_msi returned an address, but the MSIs of "
                f"{device} are not enabled: {error}"
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
        strategy: _StrategySession,
        device: PciAddress | None = None,
        values: Mapping[str, str | int] | None = None,
    ) -> Iterator[None]:
        """Let the observers veto, run the step, notify them; name the strategy that breaks."""
        name = strategy.session.strategy
        event = None
        if self._observed and (action in _UNDOING or not self._was_attached(strategy, device)):
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

    def _was_attached(self, strategy: _StrategySession, device: PciAddress | None) -> bool:
        """Return whether an earlier session attached the device, or the guest without one."""
        if device is None:
            return id(strategy) in self._strategies_before
        return device in self._devices_before

    def _notify(self, event: Event | None, error: str = "") -> None:
        if event is not None and not self._dry_run:
            self._plugins.notify(replace(event, error=error))


_UNDOING = frozenset({Action.DETACH_DOMAIN, Action.DETACH_DEVICE, Action.UNBIND_DOORBELL})


def _run_all(steps: Iterable[Callable[[], None]]) -> None:
    """Run every step; a failing one does not stop the others.

    :raise VmmMsiError: the first failure, after all steps.
    """
    failures = []
    for step in steps:
        try:
            step()
        except VmmMsiError as failure:
            failures.append(failure)
    if failures:
        raise failures[0]


def outcomes(verdicts: Iterable[Verdict]) -> dict[Outcome, int]:
    """Count MSIs by outcome; every outcome has a count."""
    counts = dict.fromkeys(Outcome, 0)
    for verdict in verdicts:
        counts[verdict.outcome] += verdict.count
    return counts
