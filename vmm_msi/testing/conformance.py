"""What holds for every strategy on every backend: the checks of the conformance suite.

A check takes a :class:`~vmm_msi.testing.subject.Subject`, runs its strategy, and yields a
:class:`~vmm_msi.testing.subject.Problem` for each way in which the strategy breaks the contract.
``pytest --pyargs vmm_msi.testing`` and ``vmm-msi plugins check`` run the same checks. None of them
judges what a strategy is good for: a fault or a refusal passes, a verdict that contradicts itself
does not.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from enum import Enum
from itertools import islice, permutations
from typing import TYPE_CHECKING, cast

from vmm_msi.engine.setup import needs_of
from vmm_msi.errors import BackendError, PluginError, RefusedError, UsageError, errno_name
from vmm_msi.iommu.backend import Backend, Capability, MsiAllocator
from vmm_msi.plugins.hookspecs import PluginKind, Session
from vmm_msi.testing.observed_backend import INJECTED
from vmm_msi.testing.subject import Problem
from vmm_msi.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vmm_msi.testing.observed_backend import BackendCall, ObservedBackend
    from vmm_msi.testing.subject import Subject
    from vmm_msi.types import Costs, Scenario, Verdict

#: Orders of undoing that are tried, at most.
_ORDERS = 12
#: The steps that a strategy is refused, one by one, at most.
_STEPS = 200

_BINDINGS = frozenset(
    {
        Capability.GUEST_BINDING_V2,
        Capability.GUEST_BINDING_V4,
        Capability.GUEST_BINDING_V8,
        Capability.GUEST_BINDING_V15,
        Capability.GUEST_BINDING_DIRECT,
    }
)
#: One of these capabilities is needed for a call.
_NEEDED: Mapping[str, frozenset[Capability]] = {
    "bind_guest_msi": _BINDINGS,
    "map_doorbell": frozenset({Capability.DOORBELL_MAP, Capability.KERNEL_DOORBELL_MAP}),
    "move_sw_msi_window": frozenset({Capability.SW_MSI_MOVE}),
    "preset_msi": frozenset({Capability.MSI_PRESET}),
    "program_msi": frozenset({Capability.MSI_ADDRESS_WRITE}),
}
#: What QEMU and the kernel do not do for a strategy.
_NOT_QEMU = frozenset(_NEEDED)


def verdicts(subject: Subject) -> Iterator[Problem]:
    """Check that each device has one verdict, and that ``delivered`` means its own ITS."""
    with subject.observed() as (_backend, session), session:
        judged = list(session.attach_and_deliver())
    host = subject.scenario.host
    if [verdict.device for verdict in judged] != subject.devices:
        yield Problem(
            "a device has no verdict, or two", "attach the device that is passed", _ATTACH
        )
    for verdict in judged:
        device = host.device_by_address[verdict.device]
        doorbell = host.its_by_id[device.its].doorbell
        # A real kernel does not tell the address.
        written = {step.values.get("pa") for step in verdict.trace if step.step == "doorbell"}
        if verdict.outcome is not Outcome.DELIVERED:
            if not verdict.reason:
                yield Problem(
                    f"{verdict.device}: {verdict.outcome} without a reason",
                    'give the reason: RefusedError("…")',
                    _PREPARE,
                )
        elif verdict.its != device.its or written - {None, str(doorbell)}:
            yield Problem(
                f"{verdict.device}: delivered to ITS {verdict.its}, its own is {device.its}",
                "map the doorbell of session.its_of(device)",
                "vmm_msi_bind_doorbell",
            )
    yield from _events(judged)


def _events(judged: Sequence[Verdict]) -> Iterator[Problem]:
    """Yield a problem if two vectors raise one LPI."""
    lpis = [
        verdict.lpi + number
        for verdict in judged
        if verdict.lpi is not None
        for number in range(verdict.count)
    ]
    if len(set(lpis)) != len(lpis):
        yield Problem("two vectors raise one LPI", "enable each device's own MSIs", _PREPARE)


def needs(subject: Subject) -> Iterator[Problem]:
    """Check that the strategy uses what it declares in its needs, and nothing else."""
    needed = needs_of(subject.plugins, subject.choice)
    declared = needed.capabilities | {needed.interface}
    with subject.observed(capabilities=declared) as (backend, session):
        with suppress(RefusedError), session:
            list(session.attach_and_deliver())
        usable = backend.info.capabilities
    reported: set[str] = set()
    for call in backend.calls:
        if call.method in reported:
            continue
        required = _required(call)
        if required and required.isdisjoint(usable):
            names = " or ".join(sorted(f"Capability.{one.name}" for one in required))
            yield Problem(
                f"calls {call.method}, which its needs do not declare",
                f"add {names} to the capabilities of Needs, or check session.backend.info first",
                "needs",
            )
        elif call.method == "advertise_rmr" and not needed.rmr:
            yield Problem("advertises an RMR", "declare rmr=True in Needs", "needs")
        elif needed.qemu and call.method in _NOT_QEMU:
            yield Problem(
                f"declares qemu=True and calls {call.method}, which QEMU does not do",
                "declare qemu=False in Needs",
                "needs",
            )
        else:
            continue
        reported.add(call.method)


def _required(call: BackendCall) -> frozenset[Capability]:
    """Return capabilities of which a call needs one; none if every backend has it."""
    if call.method == "alloc_s2":
        if call.arguments["own_file"] is not None:
            return frozenset({Capability.IOMMUFD_FILES})
        allocator = call.arguments["allocator"]
        if allocator not in {MsiAllocator.KERNEL, MsiAllocator.CALLER}:
            return frozenset({Capability(f"guest-binding-{allocator}")})
    return _NEEDED.get(call.method, frozenset())


def all_or_nothing(subject: Subject) -> Iterator[Problem]:
    """Check that a guest is attached as a whole or not at all, whichever call is refused."""
    for step in range(1, _STEPS):
        with subject.observed(fail_at=step) as (backend, session):
            before = backend.snapshot()
            with suppress(RefusedError):
                session.attach_all()
                session.detach_all()
            if len(backend.calls) < step:
                return
            call = backend.calls[step - 1]
            yield from _left(
                backend, before, f"after {call.method} was refused (call {step})", _hook_of(call)
            )


def errno(subject: Subject) -> Iterator[Problem]:
    """Check that a refusal of the kernel reaches the user with the kernel's error number."""
    yield from _natural_errno(subject)
    for step in range(1, _STEPS):
        with subject.observed(fail_at=step) as (backend, session):
            refused: RefusedError | None = None
            try:
                with session:
                    session.attach_all()
            except RefusedError as error:
                refused = error
            if len(backend.calls) < step:
                return
            if refused is not None and backend.calls[step:]:
                # It tried something else, which was refused for a reason of its own.
                continue
            if refused is not None and _number(refused) != INJECTED:
                yield _lost(backend.calls[step - 1], refused)
                return


def _natural_errno(subject: Subject) -> Iterator[Problem]:
    """Yield a problem for each device that is refused without the error number of the kernel."""
    with subject.observed() as (backend, session), session:
        for device in subject.devices:
            for step in (session.attach, session.bind, session.prepare):
                calls = len(backend.calls)
                try:
                    step(device)
                except RefusedError as error:
                    last = backend.calls[calls:][-1:]
                    kernel = last[0].error if last else None
                    if kernel is not None and _number(error) != _number(kernel):
                        yield _lost(last[0], error)
                        return
                    break


def _number(error: RefusedError) -> int | None:
    """Return the error number in the kernel's own function."""
    if not isinstance(error, BackendError):
        return None
    return error.errno if error.inside is None else error.inside


def _lost(call: BackendCall, error: RefusedError) -> Problem:
    number = "no errno" if _number(error) is None else errno_name(_number(error) or 0)
    return Problem(
        f"{call.method} was refused with {errno_name(call.error.errno if call.error else 0)}, and "
        f"the refusal has {number}: {error}",
        "let the BackendError pass, or raise error.seen_as(error.errno, REASON)",
        _hook_of(call),
        error,
    )


def undo_in_any_order(subject: Subject) -> Iterator[Problem]:
    """Check that devices can be detached in any order, and leave the backend as it was."""
    for order in islice(permutations(subject.devices), _ORDERS):
        with subject.observed() as (backend, session):
            before = backend.snapshot()
            list(session.attach_and_deliver())
            for device in order:
                session.detach(device)
            session.detach_all()
            names = ", ".join(map(str, order))
            yield from _left(backend, before, f"after detaching {names}")


def no_leak(subject: Subject) -> Iterator[Problem]:
    """Check that a guest that is attached again costs what it did the first time."""
    with subject.observed() as (backend, session):
        first: tuple[Costs, Costs] | None = None
        for _round in range(3):
            list(session.attach_and_deliver())
            attached = backend.costs()
            session.detach_all()
            costs = (attached, backend.costs())
            if costs[1].s2_domains or costs[1].s2_mappings or costs[1].bindings:
                yield _leak(costs[1])
                return
            if first is not None and costs != first:
                yield Problem(
                    f"attached a second time, the guest costs {costs[0]}; the first time "
                    f"{first[0]}",
                    "undo in each hook what its counterpart did",
                    _DETACH,
                )
                return
            first = costs


def _leak(costs: Costs) -> Problem:
    return Problem(
        f"{costs.s2_domains} stage 2 tables, {costs.s2_mappings} doorbell mappings and "
        f"{costs.bindings} bindings are left after the last device",
        "free them in vmm_msi_unbind_doorbell and vmm_msi_detach_device, as DoorbellMaps and "
        "S2Pool do",
        _DETACH,
    )


def _left(backend: ObservedBackend, before: object, when: str, hook: str = "") -> Iterator[Problem]:
    """Yield a problem if the backend differs from how it was."""
    costs = backend.costs()
    if costs.s2_domains or costs.s2_mappings or costs.bindings:
        what = (
            f"{when}, {costs.s2_domains} stage 2 tables, {costs.s2_mappings} doorbell mappings and "
            f"{costs.bindings} bindings are left"
        )
    elif backend.snapshot() != before:
        what = f"{when}, the backend differs from how it was before"
    else:
        return
    yield Problem(
        what, "undo what the hook did before the refusal reaches its caller", hook or _DETACH
    )


def repeated_runs(subject: Subject) -> Iterator[Problem]:
    """Check that a guest has the same verdicts, whichever guests the strategy served before."""
    other = _one_device(subject.scenario)
    first = _run(subject)
    for when, guest in (("a second time", None), ("after a guest with one device", other)):
        if guest is not None:
            _run(subject, guest)
        difference = _difference(first, _run(subject))
        if difference:
            yield _kept(f"{when}, {difference}")
            return
    if not subject.several:
        return
    with subject.observed(other) as (_backend, session), session:
        list(session.attach_and_deliver())
        difference = _difference(first, _run(subject))
    if difference:
        yield _kept(f"while another guest is attached, {difference}")


def _kept(what: str) -> Problem:
    return Problem(
        what,
        "keep no state in the strategy or its module: session.state(SomeClass) has one object for "
        "each guest",
        _ATTACH,
    )


def _one_device(scenario: Scenario) -> Scenario:
    guest = scenario.guest
    return replace(scenario, guest=replace(guest, devices=guest.devices[:1]))


def _run(subject: Subject, scenario: Scenario | None = None) -> list[Verdict]:
    with subject.observed(scenario) as (_backend, session), session:
        return list(session.attach_and_deliver())


def _difference(first: Sequence[Verdict], second: Sequence[Verdict]) -> str:
    """Return how two runs differ, empty if they do not."""
    for one, other in zip(first, second, strict=True):
        for name in ("outcome", "programmed", "its", "errno", "errno_inside"):
            if getattr(one, name) != getattr(other, name):
                return (
                    f"{one.device} has {name} {getattr(other, name)}; before {getattr(one, name)}"
                )
    return ""


def plan_domain(subject: Subject) -> Iterator[Problem]:
    """Check that a plan has each device once, and that planning changes nothing."""
    with subject.observed() as (backend, session):
        before = backend.snapshot()
        try:
            plans = [session.plan(), session.plan()]
        except RefusedError:
            plans = []
        if backend.calls or backend.snapshot() != before:
            yield Problem("planning changes the backend", "plan only", _PLAN)
    if plans and plans[0] != plans[1]:
        yield Problem("two plans of one guest differ", "plan by session alone", _PLAN)
    itses = subject.scenario.host.its_by_id
    for vsmmu in plans[0].vsmmus if plans else ():
        if vsmmu.its is not None and vsmmu.its not in itses:
            yield Problem(
                f"a vSMMU is for ITS {vsmmu.its}, which the host does not have",
                "use session.its_of(device)",
                _PLAN,
            )


def unbind_twice(subject: Subject) -> Iterator[Problem]:
    """Check that unbinding a doorbell that is not bound does nothing."""
    plugins, choice = subject.plugins, subject.choice
    hooks = plugins.hooks(choice.strategy)
    host, guest = subject.scenario.host, subject.scenario.guest
    device = subject.devices[0]
    if host.device_by_address[device].hw_msi is not None:
        return
    with subject.observed() as (backend, _session):
        before = backend.snapshot()
        session = Session(
            host=host,
            guest=guest,
            backend=cast("Backend", backend),
            strategy=choice.strategy,
            options=plugins.options(choice.strategy, choice.options),
            its_of=lambda address: host.device_by_address[address].its,
        )
        try:
            hooks.attach_domain(session)
            hooks.attach_device(session, device)
            with suppress(RefusedError):
                hooks.bind_doorbell(session, device)
                hooks.unbind_doorbell(session, device)
        except Exception:  # noqa: BLE001 - of the strategy; the other checks report it
            return
        try:
            hooks.unbind_doorbell(session, device)
        except Exception as error:  # noqa: BLE001 - of the strategy
            yield Problem(
                f"vmm_msi_unbind_doorbell of an unbound doorbell failed with "
                f"{type(error).__name__}: {error}",
                "return when the doorbell is not bound",
                "vmm_msi_unbind_doorbell",
                error,
            )
        with suppress(Exception):
            hooks.detach_device(session, device)
            hooks.detach_domain(session)
            yield from _left(backend, before, "after unbinding twice")


def options(subject: Subject) -> Iterator[Problem]:
    """Check that options can be written as text and hashed, and that wrong ones are refused."""
    plugins, name = subject.plugins, subject.choice.strategy
    kind = plugins.info(name, PluginKind.STRATEGY).options
    chosen = plugins.options(name, subject.choice.options)
    if plugins.needs(name, chosen) != plugins.needs(name, chosen):
        yield Problem("needs differ from call to call", "derive them from the options", "needs")
    for field in kind.__struct_fields__:
        if field == "profile":
            yield Problem(
                "option profile is taken: it names the kernel", "use another name", "options"
            )
            continue
        value = getattr(kind(), field)
        if value is None:
            continue
        text = _text(value)
        try:
            same = getattr(plugins.options(name, [(field, text)]), field) == value
        except UsageError:
            same = False
        if not same:
            yield Problem(
                f"option {field}: its default cannot be written as {field}={text}",
                "declare it as a str, bool, int, float, StrEnum or Literal",
                "options",
            )
    with suppress(UsageError):
        plugins.options(name, [("vmm_msi_unknown_option", "1")])
        yield Problem("an unknown option is accepted", "derive it from Options", "options")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value)


_ATTACH, _PREPARE = "vmm_msi_attach_device", "vmm_msi_prepare_msi"
_DETACH, _PLAN = "vmm_msi_detach_device", "vmm_msi_plan_domain"
_HOOKS = {
    "advertise_rmr": "vmm_msi_attach_domain",
    "bind_guest_msi": "vmm_msi_bind_doorbell",
    "map_doorbell": "vmm_msi_bind_doorbell",
    "prepare_msi": _PREPARE,
    "preset_msi": "vmm_msi_bind_doorbell",
    "program_msi": _PREPARE,
}


def _hook_of(call: BackendCall) -> str:
    """Return the hook that makes a call, as a rule."""
    return _HOOKS.get(call.method, _ATTACH)


#: Checks that depend on the scenario. What a strategy keeps in its class shows in the first run
#: only.
SCENARIO_CHECKS: tuple[Callable[[Subject], Iterator[Problem]], ...] = (
    repeated_runs,
    verdicts,
    needs,
    all_or_nothing,
    errno,
    undo_in_any_order,
    no_leak,
    plan_domain,
    unbind_twice,
)
#: Checks that do not.
STRATEGY_CHECKS: tuple[Callable[[Subject], Iterator[Problem]], ...] = (options,)


def problems(check: Callable[[Subject], Iterator[Problem]], subject: Subject) -> list[Problem]:
    """Return what a check reports; a hook that fails is a problem, too."""
    reported: list[Problem] = []
    try:
        reported.extend(check(subject))
    except (PluginError, RefusedError) as error:
        cause = error.__cause__ or error
        reported.append(Problem(str(error), _remedy(error), "", cause))
    return reported


def _remedy(error: PluginError | RefusedError) -> str:
    if isinstance(error, RefusedError):
        return "use a backend, or a profile, that has what it needs"
    if error.__cause__ is not None and not isinstance(error.__cause__, RefusedError):
        return 'raise RefusedError("…") to refuse a device or a guest'
    return "see docs/plugins.md, The life of a session"
