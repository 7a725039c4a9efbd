"""What is refused before anything is changed, and what would work instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml import checks
from vmm_msi.domxml.checks import Check
from vmm_msi.domxml.support import Feature
from vmm_msi.errors import RefusedError, UsageError
from vmm_msi.model import Outcome
from vmm_msi.provision.request import Carrier

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmm_msi.config import Choice
    from vmm_msi.domxml.domain import DomainXml
    from vmm_msi.domxml.metadata import DomainRecord
    from vmm_msi.domxml.support import Support
    from vmm_msi.hookspecs import Needs
    from vmm_msi.host import PluginHost
    from vmm_msi.model import GuestPlan, PciAddress, Verdict
    from vmm_msi.provision.surroundings import Surroundings


def check_once(devices: Iterable[PciAddress]) -> None:
    """Refuse a device that is named twice."""
    seen: set[PciAddress] = set()
    for device in devices:
        if device in seen:
            raise UsageError(f"{device}: is named twice")
        seen.add(device)


def check_free(around: Surroundings, record: DomainRecord, devices: Sequence[PciAddress]) -> None:
    """Refuse devices that a guest of this libvirt has already."""
    check_once(devices)
    name = around.definition.name
    for device in devices:
        if record.device(device) is not None:
            raise RefusedError(
                f"attaching {device} to {name}: it is attached already; detach it first"
            )
    for device, holder in around.holders:
        if device in devices:
            whose = "it has" if holder == name else f"domain {holder} holds"
            raise RefusedError(
                f"attaching {device} to {name}: {whose} a <hostdev> for it already; take it "
                "out there first"
            )


def check_carrier(
    plugins: PluginHost, carrier: Carrier, driver: str | None, needs: Mapping[Choice, Needs]
) -> None:
    """Refuse strategies that nobody would carry out."""
    if carrier is Carrier.SIM:
        return
    if driver not in {None, "QEMU"}:
        raise RefusedError(
            f"--backend qemu: this libvirt connection is {driver}; --backend sim works"
        )
    for choice, need in needs.items():
        if not need.qemu:
            able = [str(c) for c in plugins.choices() if needs_of(plugins, c).qemu]
            raise RefusedError(
                f"strategy {choice}: QEMU and the kernel bind doorbells by identity and cannot "
                f"carry it out; {' or '.join(able)} would work here, or --backend sim, which "
                "writes the XML and only models the binding"
            )


def needs_of(plugins: PluginHost, choice: Choice) -> Needs:
    """Return what a strategy needs with the options that were chosen."""
    return plugins.needs(choice.strategy, plugins.options(choice.strategy, choice.options))


def check_guest(old: DomainXml, carrier: Carrier, needs: Iterable[Needs]) -> None:
    """Refuse a guest that cannot have nested vSMMUs, or not with these strategies."""
    fatal = {Check.ARCH, Check.MACHINE, Check.GIC}
    if any(need.rmr for need in needs):
        fatal |= {Check.ACPI, Check.FIRMWARE}
    if carrier is Carrier.QEMU:
        fatal.add(Check.KVM)
    found = [problem for problem in checks.problems(old) if problem.check in fatal]
    if found:
        raise RefusedError(f"guest {old.name}: {'; '.join(map(str, found))}")


def check_known(around: Surroundings, carrier: Carrier, devices: Iterable[PciAddress]) -> None:
    """Refuse devices that the libvirt that is to hand them over does not know."""
    if carrier is not Carrier.QEMU or around.driver is None:
        return
    unknown = [str(device) for device in devices if device not in around.nodes]
    if unknown:
        raise RefusedError(
            f"attaching {', '.join(unknown)} to {around.definition.name}: libvirt knows no such "
            "device of the host; valid is what virsh nodedev-list --cap pci shows"
        )


def check_support(support: Support, plan: GuestPlan, carrier: Carrier, old: DomainXml) -> None:
    """Check that libvirt and QEMU can express the plan, and say what would work if not."""
    gaps = support.missing(_features(plan, carrier))
    if gaps:
        raise RefusedError(
            f"guest {old.name} would need {len(plan.vsmmus)} vSMMUs: "
            f"{'; '.join(map(str, gaps))}. {_what_works(support, plan, carrier)}"
        )


def _features(plan: GuestPlan, carrier: Carrier) -> list[Feature]:
    features = [Feature.SMMUV3]
    if len(plan.vsmmus) > 1 or carrier is Carrier.QEMU:
        features.append(Feature.PCI_BUS)
    if carrier is Carrier.QEMU:
        features += [Feature.ACCEL, Feature.HOSTDEV_IOMMUFD]
    return features


def _what_works(support: Support, plan: GuestPlan, carrier: Carrier) -> str:
    """Say what this libvirt could do instead of ``plan``."""
    if not support.has(Feature.SMMUV3):
        return "Nothing works with this libvirt"
    if carrier is Carrier.QEMU:
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
