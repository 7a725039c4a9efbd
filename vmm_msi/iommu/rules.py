"""The rules that decide where an MSI goes or why a call is refused, each with its source.

A source is a function of Linux and its file, ``iommufd_sw_msi_get_map, drivers/iommu/…``, a place
in a specification of Arm's, or the part of vmm-msi that has a rule of its own. Functions are those
of Linux 7.2; :mod:`vmm_msi.iommu.series_rules` has those of "SMMUv3 Nested Stage Setup".
docs/kernels.md has the versions that they were read in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.errors import Rule

if TYPE_CHECKING:
    from vmm_msi.types import Its

_CORE = "drivers/iommu/iommu.c"
_DMA = "drivers/iommu/dma-iommu.c"
_PGTABLE = "drivers/iommu/io-pgtable-arm.c"
_SMMU = "drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c"
_SMMU_IOMMUFD = "drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-iommufd.c"
_BINDING = "drivers/iommu/iommufd/msi_binding.c"
_ITS = "drivers/irqchip/irq-gic-v3-its.c"
_ITS_V5 = "drivers/irqchip/irq-gic-v5-its.c"
_TYPE1 = "drivers/vfio/vfio_iommu_type1.c"
_SMMU_SPEC = "Arm SMMUv3 specification (IHI 0070)"
_GIC_SPEC = "Arm GICv3 specification (IHI 0069)"
#: Of a function that Linux 7.2 does not have, or has in another file.
_OLD = ", before iommufd"


def _iommufd(text: str, function: str, file: str) -> Rule:
    return Rule(text, f"{function}, drivers/iommu/iommufd/{file}")


def _own(text: str, function: str, file: str = "vmm_msi/iommu/backend.py") -> Rule:
    """Return a rule of vmm-msi, which no kernel is asked about."""
    return Rule(text, f"{function}, {file}")


# How a device gets its address.
SLOT = _iommufd(
    "the n-th doorbell page that an iommufd file uses gets the n-th page of its MSI window",
    "iommufd_sw_msi_get_map",
    "driver.c",
)
NO_WINDOW = _iommufd(
    "a device without a software MSI window keeps the doorbell's own address",
    "iommufd_sw_msi",
    "driver.c",
)
CHOOSE_BINDING = _iommufd(
    "a device gets the gIOVA of a binding: DIRECT its own; else that which has its doorbell, or "
    "the newest unused one",
    "iommufd_msi_choose",
    "driver.c",
)
PRESET = Rule(
    "VFIO writes the address that the VMM preset for the vector",
    "iommufd_sw_msi, [PATCH RFC v2] of 2025-01-10, patch 11",
)
COOKIE = Rule(
    "a doorbell page gets the next IOVA of the MSI cookie of its IOMMU domain",
    f"iommu_dma_get_msi_page, {_DMA}",
)
NO_COOKIE = Rule(
    "a device of an IOMMU domain without an MSI cookie keeps the doorbell's own address",
    f"iommu_dma_prepare_msi, {_DMA}{_OLD}",
)
NO_ADDRESS = Rule(
    "an MSI whose doorbell could not be mapped is enabled with an address of all ones",
    f"iommu_dma_map_msi_msg, {_DMA}{_OLD}",
)
WRITTEN = _own("the strategy writes the address into the device itself", "Backend.program_msi")

# Stage 1, which the guest's kernel fills.
GUEST_DOORBELL = Rule(
    "the guest maps its gIOVA to the doorbell that it sees, in the device's IOMMU domain",
    f"iommu_dma_get_msi_page, {_DMA}, in the guest",
)
GUEST_RMR = Rule(
    "the guest maps the range of an RMR node 1:1 in the device's IOMMU domain",
    f"iommu_create_device_direct_mappings, {_CORE}, in the guest",
)
STAGE1_BYPASS = Rule(
    "a stream table entry that bypasses stage 1 passes the address on unchanged",
    f"{_SMMU_SPEC}, STE.Config",
)
STAGE1_S1DSS = Rule(
    "stage 1 is bypassed for a write without a PASID, as an MSI is",
    f"{_SMMU_SPEC}, STE.S1DSS",
)

# Stage 2.
SLOT_MAPPED = _iommufd(
    "a slot is mapped to its doorbell page once in each table, without the IOAS",
    "iommufd_sw_msi_install",
    "driver.c",
)
BINDING_MAPPED = _iommufd(
    "the page of a gDB leads to one doorbell page", "iommufd_msi_map", "driver.c"
)
RAM_MAPPED = _iommufd("the VMM maps guest RAM in the IOAS", "iommufd_ioas_map", "ioas.c")
RAM_MAPPED_TYPE1 = Rule(
    "the VMM maps guest RAM in its container", f"vfio_iommu_type1_ioctl, {_TYPE1}"
)
CALLER_MAPPED = _own("the strategy maps the doorbell page itself", "Backend.map_doorbell")
MAP_ALIGNED = Rule(
    "addresses and size of a mapping are multiples of the smallest page", f"iommu_map, {_CORE}"
)
MAP_ACCESS = Rule("a mapping permits reads or writes", f"arm_lpae_map_pages, {_PGTABLE}")
MAP_RANGE = Rule(
    "a mapping lies within the input and the output addresses of its table",
    f"arm_lpae_map_pages (arm_lpae_map in kernels of the series), {_PGTABLE}",
)
MAP_ONCE = Rule(
    "an address of a table is mapped once, until it is unmapped", f"arm_lpae_init_pte, {_PGTABLE}"
)

# The SMMU.
_EVENTS = {
    "F_TRANSLATION": "an address that stage {} does not map faults",
    "F_ADDR_SIZE": "an output of stage {} that is larger than its address space faults",
    "F_PERMISSION": "a write to a page that stage {} does not let write faults",
}
TABLE_WALK = Rule(
    "stage 2 translates the addresses of stage 1's own tables, and faults where it does not map "
    "them",
    f"{_SMMU_SPEC}, 7.3 F_TRANSLATION of stage 2, class TT",
)


def smmu_event(kind: str, stage: int, *, table_walk: bool = False) -> Rule:
    """Return the rule of the SMMU by which an access ended in an event record.

    :param kind: the name of the event record.
    """
    if table_walk:
        return TABLE_WALK
    if not stage:
        text = "the SMMU aborts the accesses of a stream without a valid stream table entry"
        return Rule(text, f"{_SMMU_SPEC}, 7.3 {kind}")
    return Rule(_EVENTS[kind].format(stage), f"{_SMMU_SPEC}, 7.3 {kind} of stage {stage}")


# The ITS.
DOORBELL = Rule(
    "a write to GITS_TRANSLATER is an MSI, and its data the EventID",
    f"{_GIC_SPEC}, GITS_TRANSLATER",
)
DOORBELL_V5 = Rule(
    "a write to the ITS's translate frame is an MSI, and its data the EventID",
    f"gicv5_its_compose_msi_msg, {_ITS_V5}",
)
DOORBELL_V2M = Rule(
    "a write to MSI_SETSPI_NS is an MSI", "gicv2m_get_msi_addr, drivers/irqchip/irq-gic-v2m.c"
)
NO_DOORBELL = Rule(
    "only a write to an ITS's doorbell is an interrupt", f"{_GIC_SPEC}, GITS_TRANSLATER"
)
TRANSLATED = Rule(
    "the ITS looks up DeviceID and EventID in the tables that MAPD and MAPTI filled",
    f"{_GIC_SPEC}, 5 The ITS",
)
UNKNOWN_DEVICE = Rule(
    "an ITS drops an MSI whose DeviceID or EventID its tables do not have",
    f"{_GIC_SPEC}, 5 The ITS",
)
MAPPED_V5 = Rule(
    "an ITS translates the DeviceIDs and EventIDs that its driver mapped",
    f"gicv5_its_map_event, {_ITS_V5}",
)
OTHER_DEVICE = Rule(
    "an ITS knows a device by its DeviceID alone: the LPI is that of the device that has it there",
    f"{_GIC_SPEC}, 5 The ITS",
)


def doorbell(its: Its) -> Rule:
    """Return the rule that makes an interrupt of a write to an ITS."""
    if its.gicv2m:
        return DOORBELL_V2M
    return DOORBELL_V5 if its.is_gicv5 else DOORBELL


NO_LPI = Rule("all ITSes of a host share its LPIs", f"its_lpi_alloc, {_ITS}")
NO_LPI_V5 = Rule("all ITSes of a host share its LPIs", "alloc_lpi, drivers/irqchip/irq-gic-v5.c")
SHARED_DEVICE_ID = Rule(
    "no two devices of a GICv5 share a DeviceID", f"gicv5_its_alloc_device, {_ITS_V5}"
)
NO_EVENT = Rule(
    "the devices with one DeviceID share the events of its table", f"its_alloc_device_irq, {_ITS}"
)
NO_EVENT_V5 = Rule(
    "a device has as many events as its table", f"gicv5_its_alloc_eventid, {_ITS_V5}"
)
_MSI_DOMAIN = "a device without an MSI domain gets no interrupts"
NO_MSI_DOMAIN = Rule(_MSI_DOMAIN, "pci_msi_setup_msi_irqs, drivers/pci/msi/irqdomain.c")
NO_MSI_DOMAIN_TYPE1 = Rule(_MSI_DOMAIN, f"pci_msi_setup_msi_irqs, drivers/pci/msi.c{_OLD}")

# Devices and groups.
NO_IOMMU = _iommufd("a device needs an IOMMU", "iommufd_device_bind", "device.c")
ISOLATED_MSIS = _iommufd(
    "the MSIs of every device of the IOMMU group are isolated from those of other devices",
    "iommufd_device_bind",
    "device.c",
)
ONE_OWNER = Rule(
    "one file descriptor owns the DMA of an IOMMU group", f"iommu_device_claim_dma_owner, {_CORE}"
)
DIRECT_REGION = Rule(
    "a device with a region that must be mapped 1:1 cannot be blocked, so VFIO cannot own it",
    f"__iommu_device_set_domain, {_CORE}",
)
DIRECT_REGION_GUEST = Rule(DIRECT_REGION.text, f"{DIRECT_REGION.source}, in the guest")
HW_MSI = Rule(
    "writes to a HW MSI region are not translated", "IOMMU_RESV_MSI, include/linux/iommu.h"
)
GROUP_BLOCKED = Rule(
    "a device of a blocked IOMMU group has no address for its MSIs",
    f"iommu_dma_prepare_msi, {_CORE}",
)
SMMU_OF_DOMAIN = Rule(
    "a table belongs to one SMMU and takes the devices behind it", f"arm_smmu_attach_dev, {_SMMU}"
)
SMMU_OF_NESTED = Rule(
    "a nested table belongs to one SMMU and takes the devices behind it",
    f"arm_smmu_attach_dev_nested, {_SMMU_IOMMUFD}",
)
VDEVICE_FIRST = Rule(
    "every device of an IOMMU group has a vDEVICE before a stage 1 is attached",
    f"arm_smmu_attach_prepare_vmaster, {_SMMU_IOMMUFD}",
)

# Objects of iommufd.
OBJECT_ID = _iommufd("an id is that of an object of the type", "iommufd_get_object", "main.c")
OBJECT_IN_USE = _iommufd(
    "an object that others refer to is not destroyed", "iommufd_object_remove", "main.c"
)
UNKNOWN_OPTION = _iommufd("an option exists in the kernel", "iommufd_option", "main.c")
UNKNOWN_CALL = _iommufd("a call exists in the kernel", "iommufd_fops_ioctl", "main.c")
MAP_ARGUMENTS = _iommufd("address and size are below 2^64 - 1", "iommufd_ioas_map", "ioas.c")
UNMAP_ARGUMENTS = _iommufd("address and size are below 2^64 - 1", "iommufd_ioas_unmap", "ioas.c")
UNMAPS_NOTHING = _iommufd("an unmap unmaps something", "iommufd_ioas_unmap", "ioas.c")
HWPT_PARENT = _iommufd(
    "the parent of a HWPT is an IOAS, a HWPT, or a vIOMMU of the device's SMMU",
    "iommufd_hwpt_alloc",
    "hw_pagetable.c",
)
HWPT_NEEDS_DATA = _iommufd(
    "a HWPT on a HWPT requires data", "iommufd_hwpt_nested_alloc", "hw_pagetable.c"
)
HWPT_ON_VIOMMU_NEEDS_DATA = _iommufd(
    "a HWPT on a vIOMMU requires data", "iommufd_viommu_alloc_hwpt_nested", "hw_pagetable.c"
)
HWPT_TAKES_NO_DATA = Rule(
    "a table on an IOAS takes no data", f"arm_smmu_domain_alloc_paging_flags, {_SMMU}"
)
TWO_STAGES = Rule(
    "a nest parent needs an SMMU with both stages", f"arm_smmu_domain_alloc_paging_flags, {_SMMU}"
)
VIOMMU_TWO_STAGES = Rule(
    "a vIOMMU needs an SMMU with both stages", f"arm_smmu_get_viommu_size, {_SMMU_IOMMUFD}"
)
VIOMMU_PARENT = _iommufd("a vIOMMU is on a nest parent", "iommufd_viommu_alloc_ioctl", "viommu.c")
VIOMMU_SMMU = Rule(
    "a vIOMMU and its nest parent belong to one SMMU", f"arm_vsmmu_init, {_SMMU_IOMMUFD}"
)
VDEVICE_SMMU = _iommufd(
    "a vDEVICE's device is behind the SMMU of its vIOMMU", "iommufd_vdevice_alloc_ioctl", "viommu.c"
)
VDEVICE_ONCE = _iommufd(
    "a device has one vDEVICE, and a virtual StreamID one device",
    "iommufd_vdevice_alloc_ioctl",
    "viommu.c",
)
VDEVICE_STREAMS = Rule("a vDEVICE has one StreamID", f"arm_vsmmu_vdevice_init, {_SMMU_IOMMUFD}")
VALID_STE = Rule(
    "a guest's stream table entry has the bits that a guest may set",
    f"arm_smmu_validate_vste, {_SMMU_IOMMUFD}",
)
ATTACH_TARGET = _iommufd(
    "a device is attached to an IOAS or a HWPT", "iommufd_device_change_pt", "device.c"
)
ATTACHED_ONCE = _iommufd("a device is attached once", "iommufd_hw_pagetable_attach", "device.c")
GROUP_HWPT = _iommufd(
    "the devices of an IOMMU group are attached to one HWPT",
    "iommufd_hw_pagetable_attach",
    "device.c",
)
REPLACES_ATTACHED = _iommufd(
    "a device that is replaced is attached", "iommufd_device_do_replace", "device.c"
)
DETACHES_ATTACHED = _iommufd(
    "a device that is detached is attached", "iommufd_hw_pagetable_detach", "device.c"
)
MSI_REGIONS = _iommufd(
    "a device has a software MSI window or a HW MSI region, not both",
    "iopt_table_enforce_dev_resv_regions",
    "io_pagetable.c",
)

# The IOAS.
MEMORY_END = _iommufd("memory ends below 2^64", "iopt_alloc_user_pages", "pages.c")
IOVA_END = _iommufd("a mapping ends below 2^64", "iopt_check_iova", "io_pagetable.c")
SIZE_ALIGNED = _iommufd(
    "the size of a mapping is a multiple of the page, and not 0",
    "iopt_alloc_area_pages",
    "io_pagetable.c",
)
IOVA_ALIGNED = _iommufd(
    "the address of a mapping is a multiple of the page", "iopt_check_iova", "io_pagetable.c"
)
MEMORY_ALIGNED = _iommufd("memory is aligned as the page is", "iopt_insert_area", "io_pagetable.c")
IOVA_RESERVED = _iommufd(
    "the VMM maps nothing in a reserved region of an attached device, or past a table's end",
    "iopt_check_iova",
    "io_pagetable.c",
)
IOVA_MAPPED = _iommufd("an address of an IOAS is mapped once", "iopt_check_iova", "io_pagetable.c")
UNMAP_RANGE = _iommufd(
    "an unmap has bytes, and ends below 2^64", "iopt_unmap_iova", "io_pagetable.c"
)
UNMAP_WHOLE = _iommufd(
    "an unmap covers a mapping in whole", "iopt_unmap_iova_range", "io_pagetable.c"
)
RESERVED_FREE = _iommufd(
    "nothing is mapped in what is reserved: regions of the device, the addresses past a table's "
    "end, the page of a gDB",
    "iopt_reserve_iova",
    "io_pagetable.c",
)
FILL_ALIGNED = _iommufd(
    "the mappings that fill a table are multiples of its page",
    "iopt_check_iova_alignment",
    "io_pagetable.c",
)

# VFIO.
OPEN_FILE = Rule("a file descriptor is open", "ioctl, fs/ioctl.c")
BOUND = Rule(
    "a device is bound before other calls",
    "vfio_device_fops_unl_ioctl, drivers/vfio/vfio_main.c",
)
BOUND_ONCE = Rule(
    "a device is bound once", "vfio_df_ioctl_bind_iommufd, drivers/vfio/device_cdev.c"
)
MSIS_ENABLED = Rule(
    "only MSIs that are enabled are disabled",
    "vfio_pci_set_msi_trigger, drivers/vfio/pci/vfio_pci_intrs.c",
)
_ACTION = "an action of VFIO_DEVICE_SET_IRQS exists in the kernel"
UNKNOWN_ACTION = Rule(_ACTION, "vfio_set_irqs_validate_and_prepare, drivers/vfio/vfio_main.c")

# Guest bindings on a nest parent.
BINDING_FIELDS = Rule(
    "the op of IOMMU_VDEVICE_MSI exists, and the fields that it does not use are 0",
    f"has_unknown_fields, {_BINDING}",
)
BINDING_OPTION = Rule(
    "a nest parent alone has guest bindings", f"iommufd_option_msi_binding, {_BINDING}"
)
BINDING_ALLOCATOR = Rule(
    "the allocator exists, and does not change while the nest parent has bindings",
    f"iommufd_msi_set_allocator, {_BINDING}",
)
BINDING_ADDRESSES = Rule(
    "a binding is a page of 4 KiB to 1 GiB, aligned at both ends",
    f"iommufd_msi_check_addresses, {_BINDING}",
)
BINDING_PAGE = Rule(
    "a binding lies in stage 2 and, with the allocator of v15, in one page of it",
    f"check_binding, {_BINDING}",
)
BINDING_GDB = Rule(
    "the page of a gDB is not a slot and, with DIRECT, is bound for one ITS",
    f"get_msi_page, {_BINDING}",
)
BINDING_ITS = Rule(
    "with the allocators of v8 and v15 the devices of a nest parent with bindings use one ITS",
    f"breaks_one_domain, {_BINDING}",
)
BINDING_ATTACH = Rule(
    "with the allocators of v8 and v15 the devices that are attached to a nest parent use one ITS",
    f"iommufd_msi_check_attach, {_BINDING}",
)
BINDING_UNBIND = Rule("a binding that is withdrawn exists", f"iommufd_msi_unbind, {_BINDING}")
BINDING_QUERY = Rule("a binding that is queried exists", f"query_vdevice, {_BINDING}")


def _posted(text: str, patch: int) -> Rule:
    """Return a rule of IOMMU_OPTION_SW_MSI_START and _SIZE as posted."""
    function = "iommufd_option_sw_msi_test" if patch == 0 else "iommufd_option_sw_msi"
    return Rule(text, f"{function}, [PATCH v2] of 2025-10-14, patch 4")


WINDOW_DETACHED = _posted("the MSI window of an attached device is not moved", 4)
WINDOW_PLACE = _posted(
    "an MSI window is a multiple of 1 MiB, below 2^64, outside of the device's reserved regions", 0
)

# What vmm-msi itself requires of its callers.
S2_EXISTS = _own("a stage 2 exists", "Backend.alloc_s2")
S2_UNUSED = _own("a stage 2 with attached devices is not freed", "Backend.free_s2")
S2_DEVICE = _own("a device of the guest is behind the SMMU of a stage 2", "Backend.alloc_s2")
S2_MADE = _own("VFIO makes a stage 2 when a device is attached to it", "Backend.map_doorbell")
ATTACHED = _own("a device is attached", "Backend.attach")
NOT_ATTACHED = _own("an attached device is not attached again", "Backend.attach")
ENABLED = _own("MSIs are enabled before they are raised", "Backend.deliver")
ONE_FILE = _own("a kernel without iommufd opens no /dev/iommu for a stage 2", "Backend.alloc_s2")
CAPABILITY = _own("a kernel has the interface that a strategy calls", "Capability")
BEHIND_SMMU = _own("a device is behind an SMMU", "Type1.attach", "vmm_msi/iommu/type1.py")
FAIL_AT = _own("the caller asked for this failure", "SimBackend", "vmm_msi/iommu/sim/backend.py")


TYPE1_ISOLATED = Rule(
    "VFIO takes no device of a host with an MSI domain that does not isolate MSIs",
    f"vfio_iommu_type1_attach_group, {_TYPE1}",
)
TYPE1_CONTAINER = Rule(
    "an IOMMU group is in one container", f"vfio_group_set_container, drivers/vfio/vfio.c{_OLD}"
)
TYPE1_REGIONS = Rule(
    "the VMM maps nothing in a reserved region of an attached device",
    f"vfio_iommu_resv_conflict, {_TYPE1}",
)
UNKNOWN_ACTION_TYPE1 = Rule(
    _ACTION, f"vfio_set_irqs_validate_and_prepare, drivers/vfio/vfio.c{_OLD}"
)
