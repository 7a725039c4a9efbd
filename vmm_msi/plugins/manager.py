"""The plugin host: loads plugins, keeps their names apart, and calls their hooks.

A typed facade over one pluggy plugin manager per :class:`PluginManager`; there is no global one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from itertools import product
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
import pluggy

from vmm_msi.config import Choice
from vmm_msi.errors import PluginError, RefusedError, UsageError
from vmm_msi.plugins import hookspecs
from vmm_msi.plugins.hookspecs import (
    PROJECT,
    Event,
    Needs,
    Options,
    PluginInfo,
    PluginKind,
    Session,
)
from vmm_msi.types import Iova

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from vmm_msi.types import GuestPlan, HostDevice, HostTopology, PciAddress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PluginRecord:
    """One plugin that was found.

    :param origin: distribution and version, or the module.
    :param info: what it says of itself; None where it was not loaded.
    :param state: ``loaded``, ``disabled`` or ``broken``.
    :param problem: why it is broken.
    """

    name: str
    origin: str
    info: PluginInfo | None = None
    state: str = "loaded"
    problem: str = ""


class PluginManager:
    """The plugins of one application.

    >>> host = PluginManager.load()
    >>> sorted(host.names(PluginKind.ITS_SELECTOR))
    ['first-in-group']
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._records: dict[str, PluginRecord] = {}
        self._hooks: dict[str, StrategyHooks] = {}
        self._selectors: dict[str, pluggy.HookCaller] = {}
        self._observers: dict[str, Observer] = {}

    @classmethod
    def load(cls, disabled: Collection[str] = (), wanted: Collection[str] = ()) -> PluginManager:
        """Load every installed plugin of the entry-point group ``vmm_msi``.

        :param disabled: names that are not loaded.
        :param wanted: names the user asked for: one that cannot be loaded is an error, while any
            other is skipped with a warning.
        :raise PluginError: when two have one name or one breaks the contract.
        :raise UsageError: when a name in ``disabled`` is no plugin's.
        """
        points: dict[str, EntryPoint] = {}
        for point in sorted(entry_points(group=PROJECT), key=lambda p: (p.name, _origin(p))):
            other = points.setdefault(point.name, point)
            if other.value != point.value:
                raise PluginError(
                    f"plugin name {point.name!r} is given twice: by {_origin(other)} and by "
                    f"{_origin(point)}; uninstall one of them"
                )
        unknown = sorted(set(disabled) - points.keys())
        if unknown:
            raise UsageError(
                f"disabling plugin {unknown[0]!r}: there is none; there are {', '.join(points)}"
            )
        host = cls()
        for point in points.values():
            host._load_point(point, disabled, wanted)
        return host

    def _load_point(
        self, point: EntryPoint, disabled: Collection[str], wanted: Collection[str]
    ) -> None:
        origin = _origin(point)
        if point.name in disabled:
            self._manager.set_blocked(point.name)
            self._records[point.name] = PluginRecord(point.name, origin, state="disabled")
            return
        try:
            plugin = point.load()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            message = f"plugin {point.name!r} ({origin}) cannot be imported: {problem}"
            if point.name in wanted:
                raise PluginError(message) from error
            log.warning("%s; it is skipped", message)
            self._records[point.name] = PluginRecord(
                point.name, origin, state="broken", problem=problem
            )
            return
        self.register(plugin, origin, point.name)

    def register(self, plugin: object, origin: str = "", name: str | None = None) -> PluginInfo:
        """Add a plugin.

        :param origin: where it is from, for messages; by default its module.
        :param name: the name it must give itself; None for whatever it says.
        :return: what it says of itself.
        :raise PluginError: when it breaks the contract or its name is taken.
        """
        origin = origin or getattr(plugin, "__name__", type(plugin).__name__)
        describe = getattr(plugin, "vmm_msi_describe", None)
        try:
            info = describe() if callable(describe) else None
        except Exception as error:
            raise PluginError(
                f"plugin {name or plugin!r} ({origin}): describing itself failed with "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(info, PluginInfo):
            raise PluginError(
                f"plugin {name or plugin!r} ({origin}): has no hook vmm_msi_describe that returns "
                "a PluginInfo"
            )
        _check_info(info, origin)
        if name is not None and info.name != name:
            raise PluginError(
                f"plugin {name!r} ({origin}): calls itself {info.name!r}; its entry point must "
                "have the same name"
            )
        taken = self._records.get(info.name)
        if taken is not None:
            raise PluginError(
                f"plugin name {info.name!r} is given twice: by {taken.origin} and by {origin}"
            )
        try:
            self._manager.register(plugin, info.name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            text = " ".join(str(error).split())
            raise PluginError(f"plugin {info.name!r} ({origin}): {text}") from error
        self._records[info.name] = PluginRecord(info.name, origin, info)
        self._hooks.clear()
        self._selectors.clear()
        self._observers = {
            observer: Observer(
                self._manager.subset_hook_caller("vmm_msi_veto", self._others(observer)),
                self._manager.subset_hook_caller("vmm_msi_observe", self._others(observer)),
            )
            for observer in self.names(PluginKind.OBSERVER)
        }
        return info

    def records(self) -> list[PluginRecord]:
        """Return every plugin that was found, by name."""
        return [self._records[name] for name in sorted(self._records)]

    def names(self, kind: PluginKind) -> list[str]:
        """Return the names of the loaded plugins of a kind."""
        return [r.name for r in self.records() if r.info is not None and r.info.kind is kind]

    def info(self, name: str, kind: PluginKind) -> PluginInfo:
        """Return what the plugin ``name`` of a kind says of itself.

        :raise UsageError: when there is no such plugin, or it is disabled or broken.
        """
        record = self._records.get(name)
        if record is None or (record.info is not None and record.info.kind is not kind):
            known = ", ".join(self.names(kind))
            raise UsageError(f"{kind} {name!r}: no such plugin; there are {known or 'none'}")
        if record.info is None:
            raise UsageError(f"{kind} {name!r} ({record.origin}): is {record.state}")
        return record.info

    def options(self, name: str, given: Iterable[tuple[str, Any]]) -> Options:
        """Convert options as they were written into the type the strategy declares.

        :raise UsageError: when one is unknown or has a wrong value; the message names the valid.
        """
        kind = self.info(name, PluginKind.STRATEGY).options
        values = dict(given)
        valid = kind.__struct_fields__
        unknown = sorted(values.keys() - set(valid))
        if unknown:
            shown = ", ".join([*valid, "profile"])
            raise UsageError(f"strategy {name}: unknown option {unknown[0]!r}; valid: {shown}")
        try:
            return msgspec.convert(values, kind, strict=False)
        except msgspec.ValidationError as error:
            hints = "; ".join(f"{field}: {_valid_values(kind, field)}" for field in values)
            raise UsageError(f"strategy {name}: {error} (valid: {hints})") from error

    def needs(self, name: str, options: Options) -> Needs:
        """Return what the strategy needs with these options."""
        needs = self.info(name, PluginKind.STRATEGY).needs
        try:
            found = needs(options) if needs is not None else None
        except Exception as error:
            raise PluginError(
                f"strategy {name}: saying its needs failed with {type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, Needs):
            raise PluginError(f"strategy {name}: its needs are {found!r}, not a Needs")
        return found

    def choices(self) -> list[Choice]:
        """Return every strategy in each of its forms.

        An option that is declared as one of several literals makes a form of each of them; other
        options are left at their defaults.
        """
        return [
            Choice(name, form)
            for name in self.names(PluginKind.STRATEGY)
            for form in _forms(self.info(name, PluginKind.STRATEGY).options)
        ]

    def hooks(self, strategy: str) -> StrategyHooks:
        """Return the hooks that one strategy and no other answers."""
        if strategy not in self._hooks:
            self._hooks[strategy] = StrategyHooks(self._manager, self._others(strategy))
        return self._hooks[strategy]

    def _others(self, name: str) -> list[object]:
        """Return every plugin but one: a hook is answered by the plugin that was selected."""
        return [plugin for other, plugin in self._manager.list_name_plugin() if other != name]

    def select_its(self, selector: str, device: HostDevice, host: HostTopology) -> int:
        """Return the ITS that the selector names for a device, else the first of its group.

        :raise RefusedError: when it names one that the device cannot use.
        """
        self.info(selector, PluginKind.ITS_SELECTOR)
        if selector not in self._selectors:
            self._selectors[selector] = self._manager.subset_hook_caller(
                "vmm_msi_select_its", self._others(selector)
            )
        its = cast("int | None", self._selectors[selector](device=device, host=host))
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
        """Tell whether anyone is interested in events."""
        return bool(self._observers)

    def veto(self, event: Event) -> None:
        """Let the observers object to an action.

        :raise RefusedError: when one does.
        :raise PluginError: when one fails: what should have a say and cannot is no consent.
        """
        what = f"{event.action} of {event.device or event.guest}"
        for name, observer in self._observers.items():
            try:
                reasons = cast("list[str]", observer.veto(event=event))
            except Exception as error:
                raise PluginError(
                    f"observer {name}: its veto on {what} failed with {type(error).__name__}: "
                    f"{error}"
                ) from error
            if reasons:
                raise RefusedError(f"{what}: vetoed by {name}: {'; '.join(reasons)}")

    def notify(self, event: Event) -> None:
        """Tell the observers what happened; their failures are logged and change nothing."""
        for name, observer in self._observers.items():
            try:
                observer.observe(event=event)
            except Exception as error:  # noqa: BLE001
                what = f"{type(error).__name__}: {error}"
                log.warning("observer %s failed at %s: %s", name, event.action, what)


class Observer(NamedTuple):
    """The hooks of one observer."""

    veto: pluggy.HookCaller
    observe: pluggy.HookCaller


class StrategyHooks:
    """The strategy hooks, typed; each is answered by one strategy."""

    def __init__(self, manager: pluggy.PluginManager, others: list[object]) -> None:
        def caller(name: str) -> pluggy.HookCaller:
            return manager.subset_hook_caller(name, others)

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

        :raise PluginError: when the strategy does not attach devices.
        """
        if self._attach_device(session=session, device=device) is None:
            raise PluginError(f"strategy {session.strategy}: did not attach {device}")

    def bind_doorbell(self, session: Session, device: PciAddress) -> None:
        """Call :func:`~vmm_msi.plugins.hookspecs.vmm_msi_bind_doorbell`."""
        self._bind_doorbell(session=session, device=device)

    def prepare_msi(self, session: Session, device: PciAddress) -> Iova:
        """Call :func:`~vmm_msi.plugins.hookspecs.vmm_msi_prepare_msi`.

        :raise PluginError: when the strategy does not enable MSIs.
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
        """Call :func:`~vmm_msi.plugins.hookspecs.vmm_msi_detach_device`."""
        self._detach_device(session=session, device=device)

    def detach_domain(self, session: Session) -> None:
        """Call :func:`~vmm_msi.plugins.hookspecs.vmm_msi_detach_domain`."""
        self._detach_domain(session=session)


def _forms(options: type[Options]) -> Iterator[tuple[tuple[str, object], ...]]:
    hints = get_type_hints(options)
    literals = {
        field: get_args(hints[field])
        for field in options.__struct_fields__
        if get_origin(hints[field]) is Literal
    }
    for values in product(*literals.values()):
        yield tuple(zip(literals, values, strict=True))


def _check_info(info: PluginInfo, origin: str) -> None:
    """Check what a plugin says of itself.

    :raise PluginError: when it is not what the contract asks for.
    """
    what = f"plugin {info.name!r} ({origin})"
    if not isinstance(info.kind, PluginKind):
        raise PluginError(f"{what}: is of kind {info.kind!r}; valid: {', '.join(PluginKind)}")
    options: object = info.options
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise PluginError(f"{what}: its options are {info.options!r}, not a subclass of Options")
    try:
        info.options()
    except TypeError as error:
        raise PluginError(f"{what}: each option must have a default: {error}") from error
    if info.kind is PluginKind.STRATEGY and info.needs is None:
        raise PluginError(f"{what}: a strategy must say its needs")


def _origin(point: EntryPoint) -> str:
    dist = point.dist
    return f"{dist.name} {dist.version}" if dist is not None else point.value


def _valid_values(kind: type[Options], field: str) -> str:
    import msgspec.inspect

    info = msgspec.inspect.type_info(kind)
    for entry in getattr(info, "fields", ()):
        if entry.name == field:
            values = getattr(entry.type, "values", None)
            return " | ".join(map(str, values)) if values else type(entry.type).__name__
    return "?"
