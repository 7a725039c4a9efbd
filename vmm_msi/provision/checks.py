"""Checks before a change: what is refused, and what to use instead."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.domxml.metadata import record_in
from vmm_msi.domxml.qemu_arguments import qemu_arguments
from vmm_msi.domxml.support import DRIVER_VALUES, Feature
from vmm_msi.errors import RefusedError, UsageError, did_you_mean
from vmm_msi.provision.request import Scope
from vmm_msi.quantity import quantity
from vmm_msi.types import BinderKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vmm_msi.doctor.finding import Finding
    from vmm_msi.domxml.guest_state import GuestState
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.support import Gap, Support
    from vmm_msi.provision.libvirt_facts import LibvirtFacts
    from vmm_msi.provision.request import AttachRequest
    from vmm_msi.types import GuestDomain, GuestPlan, PciAddress, Verdict


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
    """Refuse devices that this guest already has."""
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
                    f"attaching {device} to {name}: it is already attached in another way; detach "
                    "it first"
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


def check_binder(binder: BinderKind, driver: str | None) -> None:
    """Refuse a binder that this connection lacks."""
    if binder is BinderKind.QEMU and driver not in {None, "QEMU"}:
        raise RefusedError(
            f"--backend qemu: the driver of this libvirt connection is {driver}; use --backend sim"
        )


def check_machine(old: DomainXml) -> None:
    """Refuse a guest with a vSMMU for the whole machine on QEMU's command line."""
    iommu = qemu_arguments(old.root).machine_iommu
    if iommu is not None:
        raise RefusedError(
            f"guest {old.name}: -machine in <qemu:commandline> has iommu={iommu}, for all devices; "
            "remove it, since each SMMU gets a vSMMU of its own"
        )


def check_support(
    support: Support, plan: GuestPlan, binder: BinderKind, request: AttachRequest
) -> None:
    """Check that libvirt and QEMU can express the plan; the message says what they can.

    :raise FindingsError: if they cannot.
    """
    gaps = support.missing(_features(plan, binder, request))
    if gaps:
        from vmm_msi.doctor.refusal import refusal

        devices = ", ".join(map(str, request.devices))
        vsmmus = quantity(len(plan.vsmmus), "vSMMU")
        action = f"attaching {devices} to {request.domain}, with {vsmmus}"
        remedy = f"{_alternative(support, plan, binder, request)}."
        raise refusal(action, _gap_findings(gaps, request.domain, remedy), can_override=False)


def check_stage2(
    plan: GuestPlan,
    guest: GuestDomain,
    verdicts: Iterable[Verdict],
    binders: Mapping[PciAddress, BinderKind],
) -> None:
    """Refuse devices that need several ITSes behind one gDB in what is one stage 2 on QEMU.

    QEMU has a stage 2 for each physical SMMU and iommufd object, whatever a strategy allocates
    itself (``hw/vfio/iommufd.c`` iommufd_cdev_autodomains_get).

    :param binders: the binder of each device.
    :raise RefusedError: if the kernel would refuse the second one (EEXIST).
    """
    its_of = {verdict.device: verdict.expected_its for verdict in verdicts}
    first: dict[tuple[int, int | None, int], PciAddress] = {}
    for vsmmu in plan.vsmmus:
        iommufd = vsmmu.its if vsmmu.own_iommufd else None
        for device in vsmmu.devices:
            if binders.get(device) is not BinderKind.KERNEL:
                continue
            gdb = guest.gdb(guest.device_by_address[device])
            other = first.setdefault((vsmmu.smmu, iommufd, gdb), device)
            if its_of[other] != its_of[device]:
                raise RefusedError(
                    f"attaching {device}: QEMU has one stage 2 for SMMU {vsmmu.smmu} and an "
                    f"iommufd object, and there {other} has the doorbell {gdb} bound to ITS "
                    f"{its_of[other]}, not ITS {its_of[device]}; use "
                    "multi-its:mode=s2,iommufd=each, or identity"
                )


def _gap_findings(gaps: Iterable[Gap], domain: str, remedy: str) -> Iterator[Finding]:
    """Yield a finding for each id that reports some of the gaps."""
    from vmm_msi.doctor.finding import Evidence, Finding, Severity
    from vmm_msi.doctor.guest_rule_helpers import finding_id

    by_id: dict[str, list[Gap]] = {}
    for gap in gaps:
        by_id.setdefault(finding_id(gap), []).append(gap)
    for name, alike in by_id.items():
        yield Finding(
            name,
            Severity.ERROR,
            f"guest {domain}",
            tuple(Evidence(gap.has, gap.needs) for gap in alike),
            f"{'; '.join(map(str, alike))}.",
            remedy,
        )


def _features(plan: GuestPlan, binder: BinderKind, request: AttachRequest) -> list[Feature]:
    features = [Feature.SMMUV3, *(DRIVER_VALUES[name][0] for name in request.driver)]
    if request.fdgroup is not None:
        features += [Feature.DOMAIN_IOMMUFD, Feature.FDGROUP]
    if len(plan.vsmmus) > 1 or binder is BinderKind.QEMU:
        features.append(Feature.PCI_BUS)
    if binder is BinderKind.QEMU:
        features += [Feature.ACCEL, Feature.HOSTDEV_IOMMUFD]
        if any(vsmmu.own_iommufd for vsmmu in plan.vsmmus):
            features.append(Feature.OVERRIDE)
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
