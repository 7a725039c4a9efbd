"""The plugin manager: loads plugins, keeps their names apart, and calls their hooks.

A typed facade over one pluggy plugin manager per :class:`PluginManager`; none is global.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pluggy

from vmm_msi.config import Choice
from vmm_msi.errors import (
    PluginError,
    RefusedError,
    UsageError,
    VetoError,
    VmmMsiError,
    did_you_mean,
)
from vmm_msi.plugins import contract, hookspecs, option_values
from vmm_msi.plugins.hookspecs import PROJECT, PluginKind
from vmm_msi.types import Iova

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from vmm_msi.plugins.hookspecs import Event, Needs, Options, PluginInfo, Session
    from vmm_msi.types import GuestPlan, HostDevice, HostTopology, PciAddress

log = logging.getLogger(__name__)


class PluginState(StrEnum):
    """Whether a plugin can be used."""

    LOADED = "loaded"
    DISABLED = "disabled"
    BROKEN = "broken"


@dataclass(frozen=True)
class PluginRecord:
    """One installed or registered plugin.

    :param origin: distribution and version, or the module.
    :param info: its description; None unless it is loaded.
    :param problem: why it is broken.
    """

    name: str
    origin: str
    info: PluginInfo | None = None
    state: PluginState = PluginState.LOADED
    problem: str = ""


class _Manager(pluggy.PluginManager):
    """pluggy's manager, which looks at every attribute of a plugin, without the special ones."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        """Return the options of a hook implementation; None for an attribute that is not one.

        An object has 30 special attributes, which take most of the time and are never hooks.
        """
        return None if name.startswith("__") else super().parse_hookimpl_opts(plugin, name)


class PluginManager:
    """The plugins of one application.

    >>> plugins = PluginManager.load()
    >>> plugins.names(PluginKind.ITS_SELECTOR)
    ['first-in-group']
    """

    def __init__(self) -> None:
        self._manager = _Manager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._records: dict[str, PluginRecord] = {}
        self._hooks: dict[str, StrategyHooks] = {}
        self._selectors: dict[str, pluggy.HookCaller] = {}
        self._observers: dict[str, ObserverHooks] = {}

    @classmethod
    def load(
        cls,
        disabled: Collection[str] = (),
        wanted: Collection[str] = (),
        disabled_unless_observer: Collection[str] = (),
    ) -> PluginManager:
        """Load every installed plugin of the entry-point group ``vmm_msi``.

        A plugin that cannot be loaded is skipped with a warning, unless it is wanted.

        :param disabled: names of plugins to skip.
        :param wanted: names of plugins that must load.
        :param disabled_unless_observer: names of plugins to skip, except for observers, which are
            kept with a warning.
        :raise PluginError: when a wanted plugin cannot be loaded.
        :raise UsageError: when the name of a plugin to skip is not a plugin's.
        """
        by_name: dict[str, dict[str, EntryPoint]] = {}
        for point in entry_points(group=PROJECT):
            # One distribution can be on the path twice.
            by_name.setdefault(point.name, {}).setdefault(point.value, point)
        unknown = sorted({*disabled, *disabled_unless_observer} - by_name.keys())
        if unknown:
            raise UsageError(
                f"disabling plugin {unknown[0]!r}: no such plugin; "
                f"{did_you_mean(unknown[0], by_name)}valid: {', '.join(sorted(by_name))}"
            )
        plugins = cls()
        for name in sorted(by_name):
            points = list(by_name[name].values())
            is_disabled = name in disabled or (
                name in disabled_unless_observer and not _keep_observer(name, points)
            )
            plugins._load_points(name, points, is_disabled=is_disabled, must=name in wanted)
        return plugins

    def _load_points(
        self, name: str, points: list[EntryPoint], *, is_disabled: bool, must: bool
    ) -> None:
        """Load the plugin of a name.

        :param points: the entry points of that name.
        :param must: a plugin that cannot be loaded is an error.
        """
        origin = ", ".join(sorted(map(_origin, points)))
        if is_disabled:
            self._records[name] = PluginRecord(name, origin, state=PluginState.DISABLED)
            return
        try:
            self._add(_load(points), origin, name)
        except contract.ContractError as error:
            message = f"plugin {name!r} ({origin}): {error}"
            if must:
                raise PluginError(message) from error
            log.warning("%s; it is skipped", message)
            self._records[name] = PluginRecord(
                name, origin, state=PluginState.BROKEN, problem=str(error)
            )

    def register(self, plugin: object, origin: str = "") -> PluginInfo:
        """Add a plugin.

        :param plugin: an object with hook implementations, a module of hook functions, or a class
            to instantiate.
        :param origin: where it is from, for messages; by default its module or class.
        :return: its description.
        :raise PluginError: when it breaks the contract or its name is taken.
        """
        origin = origin or getattr(plugin, "__name__", type(plugin).__name__)
        try:
            return self._add(plugin, origin)
        except contract.ContractError as error:
            raise PluginError(f"plugin {origin}: {error}") from error

    def _add(self, plugin: object, origin: str, name: str | None = None) -> PluginInfo:
        """Check and add a plugin; ``name`` is that of its entry point."""
        plugin = contract.instance(plugin)
        contract.check_names(plugin)
        info = contract.describe(plugin)
        if name is not None and info.name != name:
            raise contract.ContractError(
                f"its name is {info.name!r}, its entry point's is {name!r}; use one name for both"
            )
        taken = self._records.get(info.name)
        if taken is not None:
            raise contract.ContractError(f"the name {info.name!r} is taken by {taken.origin}")
        try:
            self._register(plugin, info)
        except contract.ContractError:
            if self._manager.get_plugin(info.name) is plugin:
                self._manager.unregister(plugin)
            raise
        self._records[info.name] = PluginRecord(info.name, origin, info)
        self._hooks.clear()
        self._selectors.clear()
        self._observers = {
            observer: ObserverHooks(
                self.caller(observer, "vmm_msi_veto"), self.caller(observer, "vmm_msi_observe")
            )
            for observer in self.names(PluginKind.OBSERVER)
        }
        return info

    def _register(self, plugin: object, info: PluginInfo) -> None:
        """Give a plugin to pluggy, and check what pluggy will call."""
        try:
            self._manager.register(plugin, info.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            contract.check_parameters(plugin)
            raise contract.ContractError(" ".join(str(error).split())) from error
        hooks = {caller.name for caller in self._manager.get_hookcallers(plugin) or ()}
        contract.check_marks(plugin, hooks)
        contract.check_complete(info.kind, hooks)

    def caller(self, name: str, hook: str) -> pluggy.HookCaller:
        """Return what calls the implementation of one plugin, and of no other."""
        others = [plugin for other, plugin in self._manager.list_name_plugin() if other != name]
        return self._manager.subset_hook_caller(hook, others)

    def records(self) -> list[PluginRecord]:
        """Return every plugin, by name."""
        return [self._records[name] for name in sorted(self._records)]

    def names(self, kind: PluginKind) -> list[str]:
        """Return the names of the loaded plugins of a kind."""
        return [r.name for r in self.records() if r.info is not None and r.info.kind is kind]

    def plugin(self, name: str) -> object:
        """Return the object that has the hooks of a loaded plugin; None for another name."""
        return self._manager.get_plugin(name)

    def info(self, name: str, kind: PluginKind) -> PluginInfo:
        """Return the description of the plugin ``name`` of a kind.

        :raise UsageError: when no plugin has the name, or it is disabled or broken.
        """
        record = self._records.get(name)
        if record is None or (record.info is not None and record.info.kind is not kind):
            known = self.names(kind)
            raise UsageError(
                f"{kind} {name!r}: no such plugin; {did_you_mean(name, known)}valid: "
                f"{', '.join(known) or 'none'}"
            )
        if record.info is None:
            problem = record.problem and f": {record.problem}"
            raise UsageError(f"{kind} {name!r} ({record.origin}): is {record.state}{problem}")
        return record.info

    def options(self, name: str, given: Iterable[tuple[str, Any]]) -> Options:
        """Convert options as they were written into the type the strategy declares.

        :raise UsageError: when one is unknown or has a wrong value; the message names the valid.
        """
        return option_values.convert(name, self.info(name, PluginKind.STRATEGY).options, given)

    def needs(self, name: str, options: Options) -> Needs:
        """Return what the strategy needs with these options.

        :raise PluginError: when the strategy does not say.
        """
        try:
            return contract.needs_of(self.info(name, PluginKind.STRATEGY), options)
        except contract.ContractError as error:
            raise PluginError(f"strategy {name}: {error}") from error

    def choices(self) -> list[Choice]:
        """Return every strategy in each of its forms, as :func:`~.option_values.forms` has them."""
        return [
            Choice(name, form)
            for name in self.names(PluginKind.STRATEGY)
            for form in option_values.forms(self.info(name, PluginKind.STRATEGY).options)
        ]

    def hooks(self, strategy: str) -> StrategyHooks:
        """Return the hooks of one strategy."""
        if strategy not in self._hooks:
            self._hooks[strategy] = StrategyHooks(partial(self.caller, strategy))
        return self._hooks[strategy]

    def select_its(self, selector: str, device: HostDevice, host: HostTopology) -> int:
        """Return the ITS that the selector names for a device, else the first of its group.

        :raise RefusedError: when the device cannot use the ITS that the selector names.
        :raise PluginError: when the selector fails.
        """
        self.info(selector, PluginKind.ITS_SELECTOR)
        if selector not in self._selectors:
            self._selectors[selector] = self.caller(selector, "vmm_msi_select_its")
        try:
            its = cast("int | None", self._selectors[selector](device=device, host=host))
        except VmmMsiError:
            raise
        except Exception as error:
            raise PluginError(
                f"ITS selector {selector}: selecting the ITS of {device.address} failed with "
                f"{type(error).__name__}: {error}"
            ) from error
        if its is None:
            return device.its
        if its not in device.its_group:
            group = ", ".join(map(str, device.its_group))
            raise RefusedError(
                f"{device.address}: ITS selector {selector} names ITS {its}, which is not in the "
                f"device's group; valid: {group}"
            )
        return its

    @property
    def has_observers(self) -> bool:
        """Whether an observer is loaded."""
        return bool(self._observers)

    def veto(self, event: Event) -> None:
        """Let the observers object to an action.

        :raise VetoError: for a veto.
        :raise PluginError: if a veto hook itself fails: a broken observer blocks the action.
        """
        action = f"{event.action} of {event.device or event.guest}"
        for name, observer in self._observers.items():
            try:
                reasons = cast("list[object]", observer.veto(event=event))
            except Exception as error:
                raise PluginError(
                    f"observer {name}: its veto on {action} failed with {type(error).__name__}: "
                    f"{error}"
                ) from error
            for reason in reasons:
                if not isinstance(reason, str):
                    raise PluginError(
                        f"observer {name}: vmm_msi_veto returned {reason!r} for {action}; valid: "
                        "the reason as a str, or None to allow the action"
                    )
                raise VetoError(f"{action}: vetoed by {name}: {reason}")

    def notify(self, event: Event) -> None:
        """Notify the observers of an action; their failures are logged and change nothing."""
        for name, observer in self._observers.items():
            try:
                values = observer.observe(event=event)
            except Exception as error:  # noqa: BLE001
                problem = f"{type(error).__name__}: {error}"
                log.warning("observer %s failed at %s: %s", name, event.action, problem)
                continue
            for value in values:
                log.warning(
                    "observer %s: vmm_msi_observe returned %r at %s; valid: None, a veto is a "
                    "reason that vmm_msi_veto returns",
                    name, value, event.action,
                )  # fmt: skip


class ObserverHooks(NamedTuple):
    """The hooks of one observer."""

    veto: pluggy.HookCaller
    observe: pluggy.HookCaller


class StrategyHooks:
    """The hooks of one strategy, typed.

    :param caller: returns what calls the strategy's implementation of a hook.
    """

    def __init__(self, caller: Callable[[str], pluggy.HookCaller]) -> None:
        self._plan_domain = caller("vmm_msi_plan_domain")
        self._attach_domain = caller("vmm_msi_attach_domain")
        self._attach_device = caller("vmm_msi_attach_device")
        self._bind_doorbell = caller("vmm_msi_bind_doorbell")
        self._prepare_msi = caller("vmm_msi_prepare_msi")
        self._unbind_doorbell = caller("vmm_msi_unbind_doorbell")
        self._detach_device = caller("vmm_msi_detach_device")
        self._detach_domain = caller("vmm_msi_detach_domain")

    def plan_domain(self, session: Session) -> GuestPlan | None:
        """Call :func:`~vmm_msi.plugins.hookspecs.vmm_msi_plan_domain`."""
        return cast("GuestPlan | None", self._plan_domain(session=session))

    def attach_domain(self, session: Session) -> None:
        """Call :func:`~vmm_msi.plugins.hookspecs.vmm_msi_attach_domain`."""
        self._attach_domain(session=session)

    def attach_device(self, session: Session, device: PciAddress) -> None:
        """Call :func:`~vmm_msi.plugins.hookspecs.vmm_msi_attach_device`.

        :raise PluginError: when the strategy did not attach the device.
        """
        self._attach_device(session=session, device=device)
        if not session.backend.is_attached(device):
            raise PluginError(
                f"strategy {session.strategy}: vmm_msi_attach_device did not attach {device}; call "
                "session.state(S2Pool).attach or session.backend.attach"
            )

    def bind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Call :func:`~vmm_msi.plugins.hookspecs.vmm_msi_bind_doorbell`."""
        self._bind_doorbell(session=session, device=device)

    def prepare_msi(self, session: Session, device: PciAddress) -> Iova:
        """Call :func:`~vmm_msi.plugins.hookspecs.vmm_msi_prepare_msi`.

        :raise PluginError: when the strategy did not enable the MSIs.
        """
        programmed = self._prepare_msi(session=session, device=device)
        if not isinstance(programmed, Iova):
            raise PluginError(
                f"strategy {session.strategy}: did not enable the MSIs of {device}: it returned "
                f"{programmed!r}, not an Iova"
            )
        return programmed

    def unbind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Call :func:`~vmm_msi.plugins.hookspecs.vmm_msi_unbind_doorbell`."""
        self._unbind_doorbell(session=session, device=device)

    def detach_device(self, session: Session, device: PciAddress) -> None:
        """Call :func:`~vmm_msi.plugins.hookspecs.vmm_msi_detach_device`.

        :raise PluginError: when the strategy did not detach the device.
        """
        self._detach_device(session=session, device=device)
        if session.backend.is_attached(device):
            raise PluginError(
                f"strategy {session.strategy}: vmm_msi_detach_device did not detach {device}; call "
                "session.state(S2Pool).detach or session.backend.detach"
            )

    def detach_domain(self, session: Session) -> None:
        """Call :func:`~vmm_msi.plugins.hookspecs.vmm_msi_detach_domain`."""
        self._detach_domain(session=session)


def _origin(point: EntryPoint) -> str:
    if point.dist is None:
        return point.value
    return _release(point.dist)


@lru_cache(maxsize=16)
def _release(distribution: Distribution) -> str:
    """Return name and version of a distribution, read once for all of its plugins."""
    metadata = distribution.metadata
    return f"{metadata['Name']} {metadata['Version']}"


def _keep_observer(name: str, points: list[EntryPoint]) -> bool:
    """Return whether a plugin is an observer; if it is, warn that it is not disabled."""
    try:
        info = contract.describe(contract.instance(_load(points)))
    except contract.ContractError:
        return False
    if info.kind is PluginKind.OBSERVER:
        log.warning(
            "plugin %r stays enabled: only --disable-plugin, or a configuration that is named with "
            "--config, disables an observer",
            name,
        )
    return info.kind is PluginKind.OBSERVER


def _load(points: list[EntryPoint]) -> object:
    """Import what the one entry point of a name refers to.

    :raise ContractError: when it cannot be imported, or several have the name.
    """
    if len(points) > 1:
        origins = " and by ".join(sorted(map(_origin, points)))
        raise contract.ContractError(
            f"the name is given {len(points)} times: by {origins}; uninstall one"
        )
    try:
        return points[0].load()
    # A module that exits at import is as broken as a module that raises.
    except (Exception, SystemExit) as error:
        raise contract.ContractError(
            f"cannot be imported: {type(error).__name__}: {error}"
        ) from error
