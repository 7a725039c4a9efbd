"""The rules of "SMMUv3 Nested Stage Setup", each with the function of the revision that has it.

The file is where the function was in the kernel that the revision was posted for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.errors import Rule

if TYPE_CHECKING:
    from vmm_msi.iommu.revisions import Revision

#: The first revision on a kernel whose SMMU drivers have a folder of their own.
_SMMU_MOVED = 11


def _of(text: str, function: str, file: str, revision: Revision) -> Rule:
    """Return a rule of the kernel with a revision of "SMMUv3 Nested Stage Setup"."""
    number = revision.number
    kernel = f"series v{number}" if number else "before iommufd"
    return Rule(text, f"{function}, {file}, {kernel}")


def _smmu(text: str, function: str, revision: Revision) -> Rule:
    """Return a rule of that kernel's SMMUv3 driver."""
    moved = "drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c"
    file = moved if revision.number >= _SMMU_MOVED else "drivers/iommu/arm-smmu-v3.c"
    return _of(text, function, file, revision)


def choose_binding(revision: Revision) -> Rule:
    """Return the rule by which a device gets the gIOVA of a registered binding."""
    whose = "the device's bindings" if revision.device_handle else "the IOMMU domain's bindings"
    text = f"a doorbell takes the one of {whose} that has it, else the newest unused one"
    return _of(text, "iommu_dma_get_msi_page", "drivers/iommu/dma-iommu.c", revision)


def binding_size(revision: Revision) -> Rule:
    """Return the rule about the size of a binding."""
    text = "a binding is not larger than a page of stage 2"
    return _of(text, "iommu_dma_bind_guest_msi", "drivers/iommu/dma-iommu.c", revision)


def binding_cookie(revision: Revision) -> Rule:
    """Return the rule about the IOMMU domains that take bindings."""
    text = "an IOMMU domain with a nested MSI cookie takes bindings"
    return _of(text, "iommu_dma_bind_guest_msi", "drivers/iommu/dma-iommu.c", revision)


def one_its(revision: Revision) -> Rule:
    """Return the rule that the devices of a nested IOMMU domain use one ITS."""
    text = "the devices of a nested IOMMU domain have one MSI domain"
    return _smmu(text, "arm_smmu_share_msi_domain", revision)


def hw_msi(revision: Revision) -> Rule:
    """Return the rule that a nested IOMMU domain refuses a device with a HW MSI region."""
    text = "a nested IOMMU domain takes no device with a HW MSI region"
    return _smmu(text, "arm_smmu_has_hw_msi_resv_region", revision)


def one_stage1(revision: Revision) -> Rule:
    """Return the rule that an IOMMU domain has one stage 1."""
    return _smmu("an IOMMU domain takes one stage 1", "arm_smmu_attach_pasid_table", revision)


def one_smmu(revision: Revision) -> Rule:
    """Return the rule that an IOMMU domain belongs to one SMMU."""
    text = "an IOMMU domain belongs to one SMMU and takes the devices behind it"
    return _smmu(text, "arm_smmu_attach_dev", revision)


def two_stages(revision: Revision) -> Rule:
    """Return the rule that nesting needs both stages."""
    text = "a nested IOMMU domain needs an SMMU with both stages"
    return _smmu(text, "arm_smmu_domain_finalise", revision)


def smmuv3(revision: Revision) -> Rule:
    """Return the rule that the driver of the SMMU takes a guest's stage 1."""
    text = "a driver without the operations of the series takes no stage 1 of a guest"
    return _of(text, "iommu_attach_pasid_table", "drivers/iommu/iommu.c", revision)


def unknown_call(revision: Revision) -> Rule:
    """Return the rule that a call exists."""
    return _of(
        "a call exists in the kernel",
        "vfio_iommu_type1_ioctl",
        "drivers/vfio/vfio_iommu_type1.c",
        revision,
    )
