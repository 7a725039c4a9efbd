"""What is refused before anything is changed, and what would work instead."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.domxml import prerequisites
from vmm_msi.domxml.metadata import DomainRecord, read_record
from vmm_msi.domxml.nodedev import node_name
from vmm_msi.domxml.prerequisites import Check
from vmm_msi.domxml.support import DRIVER_VALUES, Feature
from vmm_msi.engine.setup import needs_of
from vmm_msi.errors import RefusedError, UsageError
from vmm_msi.host.pci.vfio_drivers import vfio_evidence
from vmm_msi.provision.request import BinderKind, Scope
from vmm_msi.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vmm_msi.config import Choice
    from vmm_msi.domxml.guest_state import GuestState
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.support import Support
    from vmm_msi.plugins.hookspecs import Needs
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.provision.libvirt_facts import LibvirtFacts
    from vmm_msi.provision.request import AttachRequest
    from vmm_msi.types import GuestPlan, HostTopology, PciAddress, PciFunction, Verdict


#: MiB that a window can have: the guest has 40 bits of addresses for such (QEMU hw/arm/virt.c
#: extended_memmap, VIRT_HIGH_PCIE_MMIO: 512 GiB).
_MOST_MEMORY_MIB = 512 << 10


def check_once(devices: Iterable[PciAddress]) -> None:
    """Refuse a device that is named twice."""
    seen: set[PciAddress] = set()
    for device in devices:
        if device in seen:
            raise UsageError(f"{device}: is named twice")
        seen.add(device)


def check_request(request: AttachRequest) -> None:
    """Refuse what no guest and no libvirt could be asked for.

    :raise UsageError: for a device that is there twice, or a property that a vSMMU does not have.
    """
    check_once(request.devices)
    for name, value in request.driver.items():
        if name not in DRIVER_VALUES:
            raise UsageError(f"vSMMU property {name!r}: unknown; valid: {', '.join(DRIVER_VALUES)}")
        _feature, values = DRIVER_VALUES[name]
        if value not in values:
            shown = f"{values[0]} to {values[-1]}" if len(values) > 2 else " and ".join(values)
            raise UsageError(f"vSMMU property {name}={value}: valid: {shown}")
    if request.fdgroup == "":
        raise UsageError("file descriptor group: it has no name; valid is any other text")
    if request.spare_ports < 0:
        raise UsageError(f"spare ports: {request.spare_ports}; valid is 0 or more")
    if not 0 <= request.spare_memory <= _MOST_MEMORY_MIB:
        raise UsageError(
            f"spare memory: {request.spare_memory} MiB; valid is 0 to {_MOST_MEMORY_MIB}"
        )
    if request.scope is Scope.LIVE and (
        request.spare_ports or request.driver or request.fdgroup is not None
    ):
        raise UsageError(
            "attaching with --scope live: spare ports, vSMMU properties and file descriptor "
            "groups are of the definition; use --scope config or --scope both"
        )


def check_release(seconds: float) -> None:
    """Refuse a time that nobody can wait for."""
    if not 0 <= seconds < math.inf:
        raise UsageError(f"release timeout: {seconds:g} s; valid is 0 or more")


def check_state(guest: GuestState, scope: Scope) -> None:
    """Refuse to change what is not there, or what libvirt would not look at.

    :raise RefusedError: when it is so.
    """
    name = guest.definition.name
    if scope.live and guest.running is None:
        raise RefusedError(
            f"changing the running guest {name}: it does not run; --scope config changes its "
            "definition"
        )
    if scope.config and not guest.persistent:
        raise RefusedError(
            f"changing the definition of {name}: it has none, it is gone when it stops; --scope "
            "live changes what runs"
        )
    if scope.config and guest.saved:
        raise RefusedError(
            f"changing the definition of {name}: libvirt saved its state, and its next start takes "
            "that up with the XML of then; start it and shut it down, or throw the state away with "
            f"virsh managedsave-remove {name}"
        )


def check_free(facts: LibvirtFacts, request: AttachRequest) -> None:
    """Refuse devices that this guest or another one of this libvirt has already.

    A virtual function goes away with the host's driver of its physical function, so the two are
    one as far as other guests go.
    """
    name = facts.guest.definition.name
    mine = [
        (request.scope.config, facts.guest.definition),
        (request.scope.live, facts.guest.running),
    ]
    for wanted, xml in mine:
        if not wanted or xml is None:
            continue
        record = read_record(xml) or DomainRecord()
        present = {hostdev.host for hostdev in xml.hostdevs()}
        for device in request.devices:
            if record.device(device) is not None:
                raise RefusedError(
                    f"attaching {device} to {name}: it is attached already; detach it first"
                )
            if device in present:
                raise RefusedError(
                    f"attaching {device} to {name}: it has a <hostdev> for it already; take it "
                    "out there first"
                )
    for held in holdings(name, request.devices, facts.holders, facts.nodes):
        raise RefusedError(f"attaching {held.device} to {name}: {held}")


class Holding(NamedTuple):
    """A device that another guest has, or whose other half it has.

    :param function: what that guest has a ``<hostdev>`` for: the device, or its physical or a
        virtual function.
    :param kind: how ``function`` is one of the device; empty where it is the device itself.
    """

    device: PciAddress
    holder: str
    function: PciAddress
    kind: str = ""

    def __str__(self) -> str:
        if not self.kind:
            return f"domain {self.holder} holds a <hostdev> for it already; take it out there first"
        return (
            f"domain {self.holder} has its {self.kind} function {self.function}, and both cannot "
            "be in use; take that out there first"
        )


def holdings(
    name: str,
    devices: Iterable[PciAddress],
    holders: Iterable[tuple[PciAddress, str]],
    nodes: Mapping[PciAddress, PciFunction],
) -> Iterator[Holding]:
    """Yield what keeps devices from the guest called ``name``, since guests have them already.

    :param holders: which guest has which device, by its definition or as it runs.
    :param nodes: what is known of the devices.
    """
    holder_of: dict[PciAddress, str] = {}
    for device, holder in holders:
        if holder != name or device not in holder_of:
            holder_of[device] = holder
    for device in devices:
        holder = holder_of.get(device, name)
        if holder != name:
            yield Holding(device, holder, device)
        node = nodes.get(device)
        if node is None:
            continue
        for other in (node.physical_function, *node.virtual_functions):
            if other is not None and other in holder_of:
                kind = "physical" if other == node.physical_function else "virtual"
                yield Holding(device, holder_of[other], other, kind)


def check_binder(
    plugins: PluginManager, binder: BinderKind, driver: str | None, needs: Mapping[Choice, Needs]
) -> None:
    """Refuse strategies that nobody would carry out."""
    if binder is BinderKind.SIM:
        return
    if driver not in {None, "QEMU"}:
        raise RefusedError(
            f"--backend qemu: this libvirt connection is {driver}; --backend sim works"
        )
    for choice, need in needs.items():
        if not need.qemu:
            raise RefusedError(
                f"strategy {choice}: {QEMU_CANNOT_APPLY}; use "
                f"{' or '.join(strategies_on_qemu(plugins))}, or --backend sim, which writes the "
                "XML and only simulates the binding"
            )


#: Why a strategy does not work on QEMU.
QEMU_CANNOT_APPLY = "QEMU and the kernel bind doorbells by identity and cannot carry it out"


def strategies_on_qemu(plugins: PluginManager) -> list[str]:
    """Return the strategies that QEMU and the kernel carry out."""
    return [str(choice) for choice in plugins.choices() if needs_of(plugins, choice).qemu]


def check_guest(old: DomainXml, binder: BinderKind, needs: Iterable[Needs]) -> None:
    """Refuse a guest that cannot have nested vSMMUs, or not with these strategies."""
    fatal = fatal_checks(binder, needs)
    found = [problem for problem in prerequisites.problems(old) if problem.check in fatal]
    if found:
        raise RefusedError(f"guest {old.name}: {'; '.join(map(str, found))}")


def fatal_checks(binder: BinderKind, needs: Iterable[Needs]) -> set[Check]:
    """Return what a guest cannot do without, with strategies of these needs."""
    fatal = {Check.ARCH, Check.MACHINE, Check.GIC}
    if any(need.rmr for need in needs):
        fatal |= {Check.ACPI, Check.FIRMWARE}
    if binder is BinderKind.QEMU:
        fatal.add(Check.KVM)
    return fatal


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
        node, function = facts.nodes[device], host.function_by_address.get(device)
        if function is None or function.driver != node.driver:
            function = node
        if request.managed or vfio_evidence(function) is not None:
            continue
        if node.driver is None:
            reason = "it has no driver"
        elif function is node:
            reason = f"the name of its driver {node.driver} is not that of a VFIO driver"
        else:
            reason = f"its driver {node.driver} is not a VFIO driver"
        raise RefusedError(
            f"attaching {device} to {name} unmanaged: {reason}; bind it to vfio-pci with "
            f"virsh nodedev-detach {node_name(device)}, or attach it managed"
        )


def check_caps(support: Support, name: str) -> None:
    """Refuse what this libvirt says that its host does not have, beside what XML needs."""
    caps = support.caps
    lacks = {
        "assign PCI devices": caps.pci_hostdev,
        "give the guest a GICv3": caps.gic3,
        "give the guest a UEFI firmware": caps.efi,
    }
    missing = [what for what, able in lacks.items() if able is False]
    if missing:
        raise RefusedError(
            f"guest {name}: libvirt's domain capabilities say that this host cannot "
            f"{' nor '.join(missing)}. Would work here: --backend sim, which writes the XML and "
            "models the binding"
        )


def check_support(
    support: Support, plan: GuestPlan, binder: BinderKind, request: AttachRequest
) -> None:
    """Check that libvirt and QEMU can express the plan, and say what would work if not."""
    gaps = support.missing(_features(plan, binder, request))
    if gaps:
        raise RefusedError(
            f"guest {request.domain} would need {len(plan.vsmmus)} vSMMUs: "
            f"{'; '.join(map(str, gaps))}. {_what_works(support, plan, binder, request)}"
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


def _what_works(
    support: Support, plan: GuestPlan, binder: BinderKind, request: AttachRequest
) -> str:
    """Say what this libvirt could do instead of ``plan``."""
    if not support.has(Feature.SMMUV3):
        return "Nothing works with this libvirt"
    plain = replace(request, driver={}, fdgroup=None)
    if not support.missing(_features(plan, binder, plain)):
        asked = ["--vsmmu"] if request.driver else []
        asked += ["--fdgroup"] if request.fdgroup is not None else []
        return f"Would work here: the same without {' and '.join(asked)}"
    if binder is BinderKind.QEMU:
        return "Would work here: --backend sim, which writes the XML and models the binding"
    if len({vsmmu.smmu for vsmmu in plan.vsmmus}) == 1:
        return "Would work here: multi-its:mode=s2, which needs one vSMMU for these devices"
    return (
        "Would work here: devices that are behind one physical SMMU, with any strategy but "
        "multi-its:mode=vsmmu"
    )


def check_verdicts(verdicts: Iterable[Verdict], record: DomainRecord) -> None:
    """Refuse MSIs that would not arrive, but for devices that were attached knowing that."""
    known = {
        device.host
        for device in record.devices
        if device.binding is not None and device.binding.outcome not in {None, Outcome.DELIVERED}
    }
    for verdict in verdicts:
        if verdict.outcome is not Outcome.DELIVERED and verdict.device not in known:
            raise RefusedError(
                f"{verdict.device}: its MSIs would not arrive: {verdict.outcome}: "
                f"{verdict.reason}; use another strategy, or --allow-faults to attach it all the "
                "same"
            )
