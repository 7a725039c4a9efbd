"""Rules about strategies: which binder supports them, and whether the MSIs are delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor import simulated
from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.guest_rule_helpers import at, subject
from vmm_msi.doctor.rule_helpers import (
    doorbell_pages,
    interface_evidence,
    named,
    no_interface,
)
from vmm_msi.doctor.rules_window import MAX_DOORBELLS
from vmm_msi.domxml import iommufd_objects
from vmm_msi.domxml.placement import is_accelerated
from vmm_msi.engine.binders import QEMU_CANNOT_APPLY, applied_by
from vmm_msi.engine.survey import delivering, on_qemu
from vmm_msi.errors import RefusedError
from vmm_msi.quantity import quantity
from vmm_msi.types import SW_MSI_WINDOW, BinderKind, Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from vmm_msi.config import Choice
    from vmm_msi.doctor.case import Case
    from vmm_msi.engine.setup import Simulation
    from vmm_msi.engine.survey import Delivery
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import HostDevice, Pa, Verdict

#: Devices that the evidence of one finding lists; the rest are counted.
_SHOWN = 8


def not_carried(case: Case) -> Iterator[Finding]:
    """Yield strategies that QEMU and the kernel do not support."""
    plugins = case.plugins
    if plugins is None or simulated.binder_of(case) is BinderKind.SIM:
        return
    for choice, needs in simulated.needs(case, plugins).items():
        binder = applied_by(choice, needs)
        by_kernel = simulated.device_binder(case, choice, needs) is BinderKind.KERNEL
        if by_kernel or binder is BinderKind.QEMU:
            continue
        evidence = [Evidence(simulated.choice_source(case), f"strategy {choice}")]
        reason, kernel = QEMU_CANNOT_APPLY, ""
        if binder is BinderKind.KERNEL:
            evidence.append(interface_evidence(case))
            reason += f", and {no_interface(case)}"
            kernel = "; or boot a kernel with that interface"
        yield Finding(
            "strategy-not-carried",
            Severity.ERROR,
            _subject(case),
            tuple(evidence),
            f"QEMU guests do not get the MSIs: {reason}.",
            f"Use {' or '.join(map(str, on_qemu(plugins)))}, or --backend sim, which only "
            f"simulates the binding{kernel}.",
        )


def msi_lost(case: Case) -> Iterator[Finding]:
    """Yield devices whose MSIs are lost in the simulator with their strategies.

    Also yield a finding if the simulation is impossible because no kernel supports the strategies.
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
            _subject(case),
            (Evidence(simulated.choice_source(case), ", ".join(map(str, _choices(case)))),),
            f"attach refuses the strategies: {error}.",
            f"Use {' or '.join(map(str, on_qemu(plugins)))} for all devices of the guest.",
        )
    for alike in lost.values():
        yield _lost(case, plugins, alike)
    more = len(case.nested) - simulated.MAX_SIMULATED
    if more > 0:
        yield Finding(
            "msi-lost",
            Severity.UNKNOWN,
            _subject(case),
            (Evidence("simulator", f"{len(case.nested)} devices, of which {more} are left out"),),
            f"Whether the MSIs of the last {quantity(more, 'device')} are delivered is unknown.",
            "Check these devices with --device.",
        )


def _lost(case: Case, plugins: PluginManager, alike: list[tuple[Simulation, Verdict]]) -> Finding:
    result, first = alike[0]
    chosen = case.choices[first.device]
    evidence = [
        Evidence(f"simulated {simulated_guest.kernel}", f"{verdict.device}: {_reason(verdict)}")
        for simulated_guest, verdict in alike[:_SHOWN]
    ]
    evidence += [
        Evidence(
            f"path of the MSI, {step.step}", " ".join(f"{k} {v}" for k, v in step.values.items())
        )
        for step in first.trace
    ]
    if first.decided_by is not None:
        evidence.append(Evidence("rule that decided", str(first.decided_by)))
    more = len(alike) - 1
    owner = "devices'" if more else "device's"
    working = [
        _offered(delivery)
        for delivery in delivering(plugins, result.scenario, simulated.selector(case))
    ]
    return Finding(
        "msi-lost",
        Severity.ERROR,
        f"{first.device}{f' and {more} more' if more else ''}",
        tuple(evidence),
        f"With strategy {chosen}, none of the {owner} MSIs are delivered: {_reason(first)}.",
        f"{_first(case)}Use a strategy that delivers here: {', '.join(working)}."
        if working
        else "No strategy delivers the MSIs here: use another device, or fix the cause that the "
        "reason describes.",
    )


def _offered(delivery: Delivery) -> str:
    """Return a strategy with what keeps it from use."""
    if delivery.by_qemu:
        return str(delivery.choice)
    return f"{delivery.choice} ({delivery.standing or 'not on QEMU'})"


def _first(case: Case) -> str:
    """Return what the guest needs before another strategy can help."""
    if case.guest is None or case.guest.xml.acpi:
        return ""
    return "Enable ACPI in the guest first (no-acpi): it cannot read QEMU's RMR without it. "


def _reason(verdict: Verdict) -> str:
    """Return the outcome and its reason, which begins with the errno of a refusal."""
    return f"{verdict.outcome}{':' if verdict.errno is None else ''} {verdict.reason}"


def rmr_fixed(case: Case) -> Iterator[Finding]:
    """Yield devices whose MSI window differs from the range of QEMU's RMR."""
    if case.plugins is None:
        return
    if not _has_qemus_rmr(case, case.plugins):
        return
    for device in case.resolved_host.devices:
        if device.address not in case.nested:
            continue
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
            f"The kernel programs addresses from {window.base:#x} on, which the guest does not "
            "map: every MSI is an S1 fault.",
            "Use a kernel whose SMMU driver has its window at 0x8000000 (1 MiB), as Linux does.",
        )


def _has_qemus_rmr(case: Case, plugins: PluginManager) -> bool:
    """Return whether a strategy of a device relies on the RMR that QEMU gives the guest."""
    return any(need.rmr and need.qemu for need in simulated.needs(case, plugins).values())


def rmr_needed(case: Case) -> Iterator[Finding]:
    """Yield the MSIs that fault if the guest's kernel ignores QEMU's RMR."""
    plugins = case.plugins
    if plugins is None or case.guest is None or not case.guest.xml.acpi:
        return
    if not _has_qemus_rmr(case, plugins):
        return
    assigned = {hostdev.host for hostdev in case.guest.placement.hostdevs}
    try:
        faults = [
            verdict
            for result in simulated.simulate(case, plugins, ignores_rmr=True)
            for verdict in result.verdicts
            if verdict.device in assigned and verdict.outcome is Outcome.S1_FAULT
        ]
    except RefusedError:
        return
    if faults:
        yield Finding(
            "rmr-needed",
            Severity.NOTE,
            subject(case.guest.xml),
            tuple(
                Evidence("simulated guest without the RMR", f"{verdict.device}: {verdict.reason}")
                for verdict in faults[:_SHOWN]
            ),
            f"The MSIs of {named(verdict.device for verdict in faults)} are delivered only if the "
            f"guest's kernel maps the RMR {SW_MSI_WINDOW.base:#x}-{SW_MSI_WINDOW.last:#x} of its "
            "IORT 1:1; a kernel that does not gets no interrupts and logs these faults.",
            "With Linux 6.0 or newer and ACPI, nothing; otherwise look for the faults in the "
            "guest's log with vmm-msi explain --in-guest.",
        )


def rmr_direct(case: Case) -> Iterator[Finding]:
    """Yield a finding if QEMU's RMR keeps VFIO in the guest from the guest's devices."""
    if case.guest is None or not case.guest.xml.acpi:
        return
    xml, placement = case.guest.xml, case.guest.placement
    vsmmus = [vsmmu for vsmmu in placement.vsmmus if is_accelerated(vsmmu)]
    devices = [hostdev.host for vsmmu in vsmmus for hostdev in placement.behind(vsmmu)]
    if devices:
        yield Finding(
            "rmr-direct",
            Severity.NOTE,
            subject(xml),
            tuple(at(xml, vsmmu.element, "accel is 'on'") for vsmmu in vsmmus[:_SHOWN]),
            f"VFIO inside the guest is refused for {named(devices)} (EINVAL): QEMU's RMR "
            f"{SW_MSI_WINDOW.base:#x}-{SW_MSI_WINDOW.last:#x} does not permit remapping, so Linux "
            "in the guest has a direct region there. DPDK with vfio-pci and nested guests cannot "
            "use them.",
            "If the guest uses them with its own kernel drivers only, nothing; no strategy that "
            "QEMU applies permits VFIO behind an accelerated vSMMU.",
        )


def window_full(case: Case) -> Iterator[Finding]:
    """Yield a finding if the devices have more doorbells than the MSI window has pages."""
    doorbells = max(_doorbells_by_iommufd(case), key=len, default={})
    granule = case.host.granule
    pages = MAX_DOORBELLS
    if case.guest is None or case.plugins is None or _has_qemus_rmr(case, case.plugins):
        pages = min(MAX_DOORBELLS, SW_MSI_WINDOW.size // granule)
    if len(doorbells) <= pages:
        return
    beyond = list(doorbells.items())[pages:]
    hdb, devices = beyond[0]
    address = SW_MSI_WINDOW.base + pages * granule
    fault = (
        "gets no slot from iommufd: VFIO_DEVICE_SET_IRQS returns ENOSPC"
        if pages == MAX_DOORBELLS
        else f"gets {address:#x}, which is outside the RMR: every MSI to it is an S1 fault"
    )
    one_guest = case.guest is not None
    yield Finding(
        "msi-window-full",
        Severity.ERROR if one_guest else Severity.NOTE,
        _subject(case),
        (
            Evidence(case.host.source, f"{len(doorbells)} doorbell pages, {granule} each"),
            Evidence(f"MSI window {SW_MSI_WINDOW}", f"{pages} pages"),
            Evidence(f"doorbell {hdb}", f"number {pages + 1}, of {devices[0].address}"),
        ),
        f"A guest with all these devices loses MSIs: the {pages + 1}th doorbell used {fault}.",
        f"Give a guest devices of at most {pages} ITSes"
        + (", or use a host kernel with 4K pages." if pages < MAX_DOORBELLS else "."),
    )


def slot_order(case: Case) -> Iterator[Finding]:
    """Yield a finding if doorbell addresses depend on which driver enables an interrupt first."""
    doorbells = max(_doorbells_by_iommufd(case), key=len, default={})
    if case.guest is None or len(doorbells) < 2:
        return
    granule = case.host.granule
    yield Finding(
        "slot-order",
        Severity.NOTE,
        _subject(case),
        tuple(
            Evidence(
                f"doorbell {hdb}, ITS {devices[0].its}",
                f"{SW_MSI_WINDOW.base + number * granule:#x} if {devices[0].address} is number "
                f"{number + 1} to use one",
            )
            for number, (hdb, devices) in enumerate([*doorbells.items()][:_SHOWN])
        ),
        "The kernel assigns pages of the MSI window in the order in which the guest's drivers "
        "first enable interrupts, so the addresses may differ from boot to boot.",
        "With identity, nothing: its RMR covers all of them; a VMM that places a vITS at the first "
        "page must use devices of a single ITS.",
    )


def _doorbells_by_iommufd(case: Case) -> Collection[dict[Pa, list[HostDevice]]]:
    """Return the doorbell pages of the devices of each iommufd object, which has its own slots."""
    pages: dict[str | None, dict[Pa, list[HostDevice]]] = {}
    for page, devices in doorbell_pages(case).items():
        for device in devices:
            xml = None if case.guest is None else case.guest.xml
            own = None if xml is None else iommufd_objects.used_by(xml, device.address)
            pages.setdefault(own, {}).setdefault(page, []).append(device)
    return pages.values()


def _subject(case: Case) -> str:
    return "host" if case.guest is None else subject(case.guest.xml)


def _choices(case: Case) -> list[Choice]:
    return sorted(set(case.choices.values()), key=str)
