"""Checks before a change: what is refused, and what to use instead."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.domxml import prerequisites
from vmm_msi.domxml.holdings import holdings
from vmm_msi.domxml.metadata import DomainRecord, record_in
from vmm_msi.domxml.nodedev import node_name
from vmm_msi.domxml.qemu_arguments import qemu_arguments
from vmm_msi.domxml.support import DRIVER_VALUES, Feature
from vmm_msi.engine.binders import QEMU_CANNOT_APPLY, fatal_checks
from vmm_msi.engine.survey import on_qemu
from vmm_msi.errors import RefusedError, UsageError, did_you_mean
from vmm_msi.host.pci.vfio_drivers import vfio_evidence
from vmm_msi.provision.request import Scope
from vmm_msi.quantity import quantity
from vmm_msi.types import BinderKind, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmm_msi.config import Choice
    from vmm_msi.domxml.guest_state import GuestState
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.support import Support
    from vmm_msi.plugins.hookspecs import Needs
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.provision.libvirt_facts import LibvirtFacts
    from vmm_msi.provision.request import AttachRequest
    from vmm_msi.types import GuestPlan, HostTopology, PciAddress, Verdict


#: Limit in MiB of a window: the size of the guest's high PCI memory (QEMU hw/arm/virt.c
#: extended_memmap, VIRT_HIGH_PCIE_MMIO: 512 GiB).
_MAX_MEMORY_MIB = 512 << 10


def check_once(devices: Iterable[PciAddress]) -> None:
    """Refuse a device that is named twice."""
    seen: set[PciAddress] = set()
    for device in devices:
        if device in seen:
            raise UsageError(f"{device}: named twice; name each device once")
        seen.add(device)


def check_request(request: AttachRequest) -> None:
    """Refuse a request that does not suit any guest or libvirt.

    :raise UsageError: for a repeated device, an unknown vSMMU property or a value out of range.
    """
    check_once(request.devices)
    for name, value in request.driver.items():
        if name not in DRIVER_VALUES:
            raise UsageError(
                f"vSMMU property {name!r}: unknown; {did_you_mean(name, DRIVER_VALUES)}valid: "
                f"{', '.join(DRIVER_VALUES)}"
            )
        _feature, values = DRIVER_VALUES[name]
        if value not in values:
            shown = f"{values[0]} to {values[-1]}" if len(values) > 2 else " and ".join(values)
            raise UsageError(f"vSMMU property {name}={value}: valid: {shown}")
    if request.fdgroup == "":
        raise UsageError("file descriptor group: the name is empty; use any other text")
    if request.spare_ports < 0:
        raise UsageError(f"spare ports: {request.spare_ports}; valid: 0 or more")
    if not 0 <= request.spare_memory <= _MAX_MEMORY_MIB:
        raise UsageError(f"spare memory: {request.spare_memory} MiB; valid: 0 to {_MAX_MEMORY_MIB}")
    if request.scope is Scope.LIVE and (
        request.spare_ports or request.driver or request.fdgroup is not None
    ):
        raise UsageError(
            "attaching with --scope live: spare ports, vSMMU properties and file descriptor "
            "groups belong to the definition; use --scope config or --scope both"
        )


def check_release(seconds: float) -> None:
    """Refuse a time that is negative or endless."""
    if not 0 <= seconds < math.inf:
        raise UsageError(f"release timeout: {seconds:g} s; valid: 0 or more")


def check_state(guest: GuestState, scope: Scope) -> None:
    """Refuse to change a run or a definition that the guest lacks, or that libvirt would not use.

    :raise RefusedError: if the guest is not in the state that ``scope`` requires.
    """
    name = guest.definition.name
    if scope.live and guest.running is None:
        raise RefusedError(
            f"changing the running guest {name}: it is not running; use --scope config to change "
            "its definition"
        )
    if scope.config and not guest.persistent:
        raise RefusedError(
            f"changing the definition of {name}: the guest is transient and has none; use --scope "
            "live to change the running guest"
        )
    if scope.config and guest.saved:
        raise RefusedError(
            f"changing the definition of {name}: libvirt saved its state, and its next start "
            "restores that state with the XML of that time; start it and shut it down, or discard "
            f"the state with virsh managedsave-remove {name}"
        )


def check_free(facts: LibvirtFacts, request: AttachRequest) -> None:
    """Refuse devices that this guest or another guest of this libvirt already has.

    A virtual function disappears with the host's driver of its physical function, so that two
    guests cannot have one each.
    """
    name = facts.guest.definition.name
    scopes = [
        (request.scope.config, facts.guest.definition),
        (request.scope.live, facts.guest.running),
    ]
    for is_changed, xml in scopes:
        if not is_changed or xml is None:
            continue
        record = record_in(xml)
        present = {hostdev.host: hostdev for hostdev in xml.assigned()}
        for device in request.devices:
            if record.device(device) is not None:
                raise RefusedError(
                    f"attaching {device} to {name}: it is already attached; detach it first"
                )
            if device in present and present[device].argument is not None:
                raise RefusedError(
                    f"attaching {device} to {name}: it is assigned by <qemu:arg> already; remove "
                    "it there first"
                )
            if device in present:
                raise RefusedError(
                    f"attaching {device} to {name}: the guest already has a <hostdev> for it; "
                    "remove that first"
                )
    for holding in holdings(name, request.devices, facts.holders, facts.nodes):
        raise RefusedError(f"attaching {holding.device} to {name}: {holding}")


def check_binder(
    plugins: PluginManager, binder: BinderKind, driver: str | None, needs: Mapping[Choice, Needs]
) -> None:
    """Refuse a binder that this connection lacks, and strategies that the binder cannot apply."""
    if binder is BinderKind.SIM:
        return
    if driver not in {None, "QEMU"}:
        raise RefusedError(
            f"--backend qemu: the driver of this libvirt connection is {driver}; use --backend sim"
        )
    for choice, need in needs.items():
        if not need.qemu:
            raise RefusedError(
                f"strategy {choice}: {QEMU_CANNOT_APPLY}; use "
                f"{' or '.join(map(str, on_qemu(plugins)))}, or --backend sim, which writes the "
                "XML and only simulates the binding"
            )


def check_guest(old: DomainXml, binder: BinderKind, needs: Iterable[Needs]) -> None:
    """Refuse a guest that cannot have nested vSMMUs, or not with these strategies."""
    fatal = fatal_checks(binder, needs)
    problems = [problem for problem in prerequisites.problems(old) if problem.check in fatal]
    if problems:
        raise RefusedError(f"guest {old.name}: {'; '.join(map(str, problems))}")
    iommu = qemu_arguments(old.root).machine_iommu
    if iommu is not None:
        raise RefusedError(
            f"guest {old.name}: -machine in <qemu:commandline> has iommu={iommu}, for all devices; "
            "remove it, since each SMMU gets a vSMMU of its own"
        )


def check_devices(
    facts: LibvirtFacts, host: HostTopology, binder: BinderKind, request: AttachRequest
) -> None:
    """Refuse devices that libvirt does not know, and unmanaged ones that are not bound to VFIO.

    :param host: what it shows of a device's driver is used if libvirt names the same driver.
    """
    if binder is not BinderKind.QEMU or facts.driver is None:
        return
    name = facts.guest.definition.name
    unknown = [str(device) for device in request.devices if device not in facts.nodes]
    if unknown:
        raise RefusedError(
            f"attaching {', '.join(unknown)} to {name}: libvirt knows no such device of the host; "
            "valid is what virsh nodedev-list --cap pci shows"
        )
    for device in request.devices:
        node, shown = facts.nodes[device], host.function_by_address.get(device)
        if shown is not None and shown.driver != node.driver:
            shown = None
        if request.managed or vfio_evidence(shown or node) is not None:
            continue
        if node.driver is None:
            reason = "it has no driver"
        elif shown is None:
            reason = f"the name of its driver {node.driver} is not that of a VFIO driver"
        else:
            reason = f"its driver {node.driver} is not a VFIO driver"
        raise RefusedError(
            f"attaching {device} to {name} unmanaged: {reason}; bind it to vfio-pci with "
            f"virsh nodedev-detach {node_name(device)}, or attach it managed"
        )


def check_caps(support: Support, name: str) -> None:
    """Refuse a host that lacks something by libvirt's domain capabilities."""
    caps = support.caps
    lacks = {
        "assign PCI devices": caps.pci_hostdev,
        "give the guest a GICv3": caps.gic3,
        "give the guest a UEFI firmware": caps.efi,
    }
    missing = [what for what, able in lacks.items() if able is False]
    if missing:
        raise RefusedError(
            f"guest {name}: by libvirt's domain capabilities this host cannot "
            f"{' nor '.join(missing)}; use --backend sim, which writes the XML and simulates the "
            "binding"
        )


def check_support(
    support: Support, plan: GuestPlan, binder: BinderKind, request: AttachRequest
) -> None:
    """Check that libvirt and QEMU can express the plan; the message says what they can."""
    gaps = support.missing(_features(plan, binder, request))
    if gaps:
        raise RefusedError(
            f"guest {request.domain} needs {quantity(len(plan.vsmmus), 'vSMMU')}: "
            f"{'; '.join(map(str, gaps))}. {_alternative(support, plan, binder, request)}"
        )


def _features(plan: GuestPlan, binder: BinderKind, request: AttachRequest) -> list[Feature]:
    features = [Feature.SMMUV3, *(DRIVER_VALUES[name][0] for name in request.driver)]
    if request.fdgroup is not None:
        features += [Feature.DOMAIN_IOMMUFD, Feature.FDGROUP]
    if len(plan.vsmmus) > 1 or binder is BinderKind.QEMU:
        features.append(Feature.PCI_BUS)
    if binder is BinderKind.QEMU:
        features += [Feature.ACCEL, Feature.HOSTDEV_IOMMUFD]
    return features


def _alternative(
    support: Support, plan: GuestPlan, binder: BinderKind, request: AttachRequest
) -> str:
    """Return what this libvirt can do instead of ``plan``, as a sentence."""
    if not support.has(Feature.SMMUV3):
        return "Use a newer libvirt: this one has no vSMMU"
    plain = replace(request, driver={}, fdgroup=None)
    if not support.missing(_features(plan, binder, plain)):
        options = ["--vsmmu"] if request.driver else []
        options += ["--fdgroup"] if request.fdgroup is not None else []
        return f"Omit {' and '.join(options)}"
    if binder is BinderKind.QEMU:
        return "Use --backend sim, which writes the XML and simulates the binding"
    if len({vsmmu.smmu for vsmmu in plan.vsmmus}) == 1:
        return "Use multi-its:mode=s2, which needs one vSMMU for these devices"
    return "Use devices behind one physical SMMU, with any strategy but multi-its:mode=vsmmu"


def check_verdicts(verdicts: Iterable[Verdict], record: DomainRecord) -> None:
    """Refuse MSIs that are not delivered, but for devices that are recorded so."""
    recorded = {
        device.host
        for device in record.devices
        if device.binding is not None and device.binding.outcome not in {None, Outcome.DELIVERED}
    }
    for verdict in verdicts:
        if verdict.outcome is not Outcome.DELIVERED and verdict.device not in recorded:
            raise RefusedError(
                f"{verdict.device}: its MSIs are not delivered: {verdict.outcome}: "
                f"{verdict.reason}; use another strategy, or --allow-faults to attach it anyway"
            )
