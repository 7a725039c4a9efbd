"""Write scenario files, as ``vmm-msi scenario`` does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi import samples
from vmm_msi.host.scenario import load_scenario
from vmm_msi.host.scenario_export import left_out, scenario_document
from vmm_msi.host.scenario_text import toml_lines

if TYPE_CHECKING:
    from vmm_msi.types import Scenario

_EXAMPLE = "two-its.toml"
_COMMENTS = {
    "host": "docs/scenario.md describes every key",
    "host.granule": "page size of stage 2: the host kernel's",
    "host.smmu": "a physical SMMU",
    "host.smmu.base": "address of its registers",
    "host.smmu.nested": "false: it has one stage only",
    "host.smmu.version": "2 for an SMMUv1 or v2",
    "host.its": "a physical ITS",
    "host.its.base": "its doorbell is base + 0x10040",
    "host.device": "a PCI function that can be assigned",
    "host.device.smmu": "id of the SMMU of its DMA",
    "host.device.its_group": "ids of its ITSes; Linux takes the first",
    "host.device.iommu_group": "a group shares one translation",
    "host.device.vectors": "MSIs that it can signal, 1 to 2048",
    "host.device.streams": "number of its StreamIDs",
    "host.device.stream_id": "the first of them",
    "host.device.device_id": "what its ITS knows it by",
    "host.device.reserved": "regions of IOVAs, as in sysfs",
    "guest.order": 'or "batched": all attach, then all enable',
    "guest.honours_rmr": "its stage 1 maps RMRs 1:1",
    "guest.memory": "its RAM",
    "guest.vits": "a virtual ITS",
    "guest.vits.base": "its doorbell page is base + 0x10000",
    "guest.stage1": "a translation table that the guest owns",
    "guest.stage1.granule": "its page size: 4K, 16K or 64K",
    "guest.stage1.config": 'or "bypass", "s1dss-bypass"',
    "guest.device": "a device that is assigned",
    "guest.device.stage1": "the same id shares a stage 1",
    "guest.device.vits": "id of its virtual ITS",
    "guest.device.giova": "where its stage 1 maps the doorbell page",
    "guest.device.vfio": "VFIO in the guest uses it",
    "vmm.containers": 'or "stage1", "guest": without iommufd',
}


def example() -> str:
    """Return a commented scenario of two devices on two ITSes."""
    scenario = load_scenario(Path(samples.path(_EXAMPLE)))
    return commented(scenario, "two devices on two ITSes, an example")


def commented(scenario: Scenario, source: str) -> str:
    """Return a scenario file with every key, its defaults included, and a comment for each.

    Ranges and lists of the host's sources are left out: the devices are listed.

    :param source: what the scenario is of, for the comment at its start.
    """
    host = replace(
        scenario.host,
        routes=(),
        functions=(),
        segments=(),
        reserved_memory=(),
        missing=(),
        table_errors=(),
        firmware=None,
        lists_all_functions=True,
    )
    heading = (
        f"A scenario of {source}.",
        "Change it, then: vmm-msi compare --scenario FILE",
        *left_out(host),
    )
    document = scenario_document(replace(scenario, host=host), complete=True)
    return "".join(f"{line}\n" for line in toml_lines(document, heading, _COMMENTS))
