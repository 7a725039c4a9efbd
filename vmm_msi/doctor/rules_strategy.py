"""Rules about strategies: who carries them out here, and whether the MSIs arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor import simulated
from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.guest_rule_helpers import subject
from vmm_msi.doctor.rule_helpers import doorbell_pages, named
from vmm_msi.doctor.rules_window import MAX_DOORBELLS
from vmm_msi.engine.survey import delivering
from vmm_msi.errors import RefusedError, errno_name
from vmm_msi.provision.checks import QEMU_CANNOT_APPLY, strategies_on_qemu
from vmm_msi.provision.request import BinderKind
from vmm_msi.types import SW_MSI_WINDOW, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.config import Choice
    from vmm_msi.doctor.case import Case
    from vmm_msi.engine.setup import Simulation
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import Verdict

#: Devices that one finding has evidence of; more are counted.
_SHOWN = 8


def not_carried(case: Case) -> Iterator[Finding]:
    """Yield strategies that QEMU and the kernel do not carry out."""
    plugins = case.plugins
    if plugins is None or simulated.binder_of(case) is BinderKind.SIM:
        return
    for choice, needs in simulated.needs(case, plugins).items():
        if needs.qemu:
            continue
        yield Finding(
            "strategy-not-carried",
            Severity.ERROR,
            _whose(case),
            (Evidence(simulated.choice_source(case), f"strategy {choice}"),),
            f"Its MSIs do not arrive in a guest of QEMU: {QEMU_CANNOT_APPLY}.",
            f"Use {' or '.join(strategies_on_qemu(plugins))}, or --backend sim, which only "
            "simulates the binding.",
        )


def msi_lost(case: Case) -> Iterator[Finding]:
    """Yield devices whose MSIs do not arrive, by the model, with the strategies chosen for them.

    Also that these cannot be tried: that no kernel has all that they need.
    """
    plugins = case.plugins
    if plugins is None:
        return
    lost: dict[tuple[Outcome, int | None], list[tuple[Simulation, Verdict]]] = {}
    try:
        for result in simulated.simulate(case, plugins):
            for verdict in result.verdicts:
                if verdict.outcome is not Outcome.DELIVERED:
                    key = verdict.outcome, verdict.errno
                    lost.setdefault(key, []).append((result, verdict))
    except RefusedError as error:
        yield Finding(
            "strategy-unusable",
            Severity.ERROR,
            _whose(case),
            (Evidence(simulated.choice_source(case), ", ".join(map(str, _named(case)))),),
            f"attach refuses it: {error}.",
            f"Use {' or '.join(strategies_on_qemu(plugins))} for all devices of the guest.",
        )
    for found in lost.values():
        yield _lost(case, plugins, found)


def _lost(case: Case, plugins: PluginManager, found: list[tuple[Simulation, Verdict]]) -> Finding:
    result, first = found[0]
    chosen = simulated.choices(case)[first.device]
    evidence = [
        Evidence(f"the model of {each.kernel}", f"{verdict.device}: {_words(verdict)}")
        for each, verdict in found[:_SHOWN]
    ]
    evidence += [
        Evidence(f"its way, {step.step}", " ".join(f"{k} {v}" for k, v in step.values.items()))
        for step in first.trace
    ]
    more = len(found) - 1
    able = [
        f"{delivery.choice}{'' if delivery.needs.qemu else ' (not on QEMU)'}"
        for delivery in delivering(plugins, result.scenario, simulated.selector(case))
    ]
    return Finding(
        "msi-lost",
        Severity.ERROR,
        f"{first.device}{f' and {more} more' if more else ''}",
        tuple(evidence),
        f"With strategy {chosen} no MSI of it arrives: {first.outcome}.",
        f"{_first(case)}Would deliver here: {', '.join(able)}."
        if able
        else "No strategy delivers its MSIs here: use another device, or mend what the reason "
        "names.",
    )


def _first(case: Case) -> str:
    """Say what of the guest comes before another strategy."""
    if case.guest is None or case.guest.xml.acpi:
        return ""
    return "Give the guest ACPI first (no-acpi): without it the RMR that QEMU writes is not read. "


def _words(verdict: Verdict) -> str:
    number = f" {errno_name(verdict.errno)}" if verdict.errno is not None else ""
    reason = verdict.reason.removeprefix(f"{number.strip()}: ")
    return f"{verdict.outcome}{number}: {reason}"


def rmr_fixed(case: Case) -> Iterator[Finding]:
    """Yield devices whose MSI window is not the range that QEMU's RMR has."""
    if case.plugins is None:
        return
    needs = simulated.needs(case, case.plugins)
    if not any(need.rmr for need in needs.values()):
        return
    for device in simulated.resolved_host(case).devices:
        window = device.sw_msi_window
        same = window is not None and window.base == SW_MSI_WINDOW.base
        if window is None or (same and window.size == SW_MSI_WINDOW.size):
            continue
        yield Finding(
            "rmr-fixed",
            Severity.ERROR,
            str(device.address),
            (
                Evidence(f"{case.host.source}: reserved regions of {device.address}", str(window)),
                Evidence("QEMU hw/arm/virt-acpi-build.c", f"the RMR is {SW_MSI_WINDOW}"),
            ),
            f"The kernel programs an address from {window.base:#x} on, which the guest does not "
            "map: each MSI is an S1 fault.",
            "Use a kernel whose SMMU driver has its window at 0x8000000, 1 MiB, as Linux has.",
        )


def rmr_needed(case: Case) -> Iterator[Finding]:
    """Yield what becomes of a guest whose kernel does not map the RMR that QEMU gives it."""
    plugins = case.plugins
    if plugins is None or case.guest is None or not case.guest.xml.acpi:
        return
    if not any(need.rmr for need in simulated.needs(case, plugins).values()):
        return
    given = {hostdev.host for hostdev in case.guest.xml.hostdevs()}
    try:
        faults = [
            verdict
            for result in simulated.simulate(case, plugins, ignores_rmr=True)
            for verdict in result.verdicts
            if verdict.device in given and verdict.outcome is Outcome.S1_FAULT
        ]
    except RefusedError:
        return
    if faults:
        yield Finding(
            "rmr-needed",
            Severity.NOTE,
            subject(case.guest.xml),
            tuple(
                Evidence("the model of a guest that ignores it", f"{each.device}: {each.reason}")
                for each in faults[:_SHOWN]
            ),
            f"The MSIs of {named(each.device for each in faults)} arrive because the guest's "
            f"kernel maps the RMR {SW_MSI_WINDOW.base:#x}-{SW_MSI_WINDOW.last:#x} of its IORT 1:1; "
            "one that does not gets no interrupt, and logs these faults.",
            "Nothing with Linux 6.0 or newer that boots with ACPI; look for the faults in the "
            "guest's log with vmm-msi explain --in-guest.",
        )


def window_full(case: Case) -> Iterator[Finding]:
    """Yield that the devices have more doorbells than the MSI window has pages."""
    doorbells = doorbell_pages(case)
    granule = case.host.granule
    pages = min(MAX_DOORBELLS, SW_MSI_WINDOW.size // granule)
    if len(doorbells) <= pages:
        return
    beyond = list(doorbells.items())[pages:]
    hdb, devices = beyond[0]
    address = SW_MSI_WINDOW.base + pages * granule
    fault = (
        "iommufd has no slot for it (EOVERFLOW)"
        if pages == MAX_DOORBELLS
        else f"it is given {address:#x}, outside of the RMR, and each MSI is an S1 fault"
    )
    one_guest = case.guest is not None
    yield Finding(
        "msi-window-full",
        Severity.ERROR if one_guest else Severity.NOTE,
        _whose(case),
        (
            Evidence(case.host.source, f"{len(doorbells)} doorbell pages, {granule} each"),
            Evidence(f"MSI window {SW_MSI_WINDOW}", f"{pages} pages"),
            Evidence(f"doorbell {hdb}", f"number {pages + 1}, of {devices[0].address}"),
        ),
        f"One guest with all these devices loses MSIs: of the {pages + 1}th doorbell that is used "
        f"{fault}.",
        f"Give a guest devices of {pages} ITSes at most"
        + (", or use a host kernel with 4K pages." if pages < MAX_DOORBELLS else "."),
    )


def slot_order(case: Case) -> Iterator[Finding]:
    """Yield that the addresses of doorbells depend on who enables an interrupt first."""
    doorbells = doorbell_pages(case)
    if case.guest is None or len(doorbells) < 2:
        return
    granule = case.host.granule
    yield Finding(
        "slot-order",
        Severity.NOTE,
        _whose(case),
        tuple(
            Evidence(
                f"doorbell {hdb}, ITS {devices[0].its}",
                f"{SW_MSI_WINDOW.base + number * granule:#x} if it is number {number + 1} to be "
                f"used, by {devices[0].address}",
            )
            for number, (hdb, devices) in enumerate([*doorbells.items()][:_SHOWN])
        ),
        "The kernel gives pages of the MSI window to doorbells in the order in which the guest's "
        "drivers first enable interrupts, so that the addresses may differ from boot to boot.",
        "Nothing, with identity: its RMR covers them all; a VMM that places a vITS at the first "
        "page must take devices of one ITS alone.",
    )


def _whose(case: Case) -> str:
    return "host" if case.guest is None else subject(case.guest.xml)


def _named(case: Case) -> list[Choice]:
    return sorted(set(simulated.choices(case).values()), key=str)
