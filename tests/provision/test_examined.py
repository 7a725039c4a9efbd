"""attach, render and compare refuse with the ids of the doctor's errors, and with no others.

For hosts that lack one thing or several: what the doctor reports for the resulting definition, or
for the devices where nothing can be written, is what the planner refuses with.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from doctor.cases import A2, HOST, A, B, function

from vmm_msi.config import Choice, Config
from vmm_msi.doctor.case import Case, Guest
from vmm_msi.doctor.devices import with_routed
from vmm_msi.doctor.finding import Severity
from vmm_msi.doctor.rules import examine
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.support import newest
from vmm_msi.domxml.template import nested_guest
from vmm_msi.errors import FindingsError
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.provision import AttachRequest, definition_file
from vmm_msi.types import PciAddress

PLUGINS = PluginManager.load()
ABSENT = PciAddress.parse("0000:77:00.0")
BRIDGE = PciAddress.parse("0000:00:01.0")


def with_functions(host, *changed):
    """Return the host with these functions in place of those at the same addresses."""
    functions = {item.address: item for item in (*host.functions, *changed)}
    return replace(host, functions=tuple(functions.values()))


#: What a host may lack.
HOSTS = {
    "half a group": lambda host: with_functions(host, function(A, members=(A, A2))),
    "no group": lambda host: with_functions(host, function(A, iommu_group=None, members=())),
    "a bridge": lambda host: with_functions(host, function(BRIDGE, class_code=0x060400)),
    "no nesting": lambda host: replace(
        host, smmus=tuple(replace(smmu, nested=False) for smmu in host.smmus)
    ),
    "SMMUv2": lambda host: replace(
        host, smmus=(replace(host.smmus[0], version=2), *host.smmus[1:])
    ),
    "several StreamIDs": lambda host: with_functions(host, function(A, dma_rids=(A.rid, 0x200))),
}
HOST_PARTS = [(), *((name,) for name in HOSTS), *combinations(HOSTS, 2)]
DEVICES = [(A,), (A, B), (ABSENT,), (BRIDGE,)]
GUESTS = {
    "ready": lambda text: text,
    "no ACPI": lambda text: text.replace("<acpi/>", ""),
    "x86_64": lambda text: text.replace("aarch64", "x86_64"),
    "emulated": lambda text: text.replace("type='kvm'", "type='qemu'"),
    "GICv2": lambda text: text.replace("<gic version='3'/>", "<gic version='2'/>"),
}
STRATEGIES = [None, "host-cookie", "direct"]


def doctor_errors(xml, host, devices, choice=None):
    """Return the ids of the doctor's errors, as ``vmm-msi doctor`` finds them in files."""
    software = newest()
    case = Case(
        host=with_routed(host, devices),
        guest=Guest(xml, xml),
        devices=tuple(devices),
        choice=choice,
        plugins=PLUGINS,
    )
    case = replace(
        case, software=replace(case.software, libvirt=software.libvirt, qemu=software.qemu)
    )
    return {finding.id for finding in examine(case) if finding.severity is Severity.ERROR}


def planned(xml, host, devices, choice, *, allow_faults=False):
    request = AttachRequest("g", devices, choice, allow_faults=allow_faults)
    return definition_file.plan_attach(xml, newest(), PLUGINS, Config(), host, request)


@pytest.mark.parametrize("parts", HOST_PARTS, ids=lambda parts: "+".join(parts) or "healthy")
@pytest.mark.parametrize("kind", GUESTS)
def test_refusals_are_the_errors_of_the_doctor(parts, kind):
    host = HOST
    for part in parts:
        host = HOSTS[part](host)
    text = GUESTS[kind](str(nested_guest("g", memory=1 << 30)))
    xml = DomainXml.parse(text, "g.xml")
    for devices in DEVICES:
        for strategy in STRATEGIES if kind == "ready" else [None]:
            choice = None if strategy is None else Choice.parse(strategy)
            try:
                refused = set()
                result = planned(xml, host, devices, choice).new
            except FindingsError as error:
                refused = set(error.findings)
                try:
                    result = planned(xml, host, devices, choice, allow_faults=True).new
                except Exception:  # noqa: BLE001 - nothing can be written
                    result = None
            if result is None:
                assert refused == doctor_errors(xml, host, devices, choice)
            else:
                assigned = [hostdev.host for hostdev in result.hostdevs()]
                assert refused == doctor_errors(result, host, assigned)
