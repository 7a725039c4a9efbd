"""The simulator as a machine: iommufd, VFIO, SMMU and ITS for call sequences.

VFIO follows ``drivers/vfio/device_cdev.c``, ``drivers/vfio/iommufd.c`` and
``drivers/vfio/pci/vfio_pci_intrs.c``; translations and events follow the Arm SMMUv3 architecture
specification (IHI 0070), 3.12 and 7.3.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import BackendError, CallSequenceError
from vmm_msi.iommu import rules
from vmm_msi.iommu.call_sequence import (
    RAM_BASE,
    RAM_PAGE,
    RAM_SIZE,
    WITNESSES,
    Landing,
    LandingKind,
    NestedConfig,
)
from vmm_msi.iommu.fd_calls import FdCalls
from vmm_msi.iommu.sim.binding_iommufd import BindingIommufd
from vmm_msi.iommu.sim.core import IommuCore
from vmm_msi.iommu.sim.iommufd import SimIommufd
from vmm_msi.iommu.sim.its import LpiSpace, SimIts, table_sizes
from vmm_msi.iommu.sim.objects import (
    CoreDomain,
    GuestSte,
    Msis,
    NestedHwpt,
    PagingHwpt,
    SteConfig,
)
from vmm_msi.iommu.sim.page_table import PageTable
from vmm_msi.iommu.sim.smmu import Stage1Config, Walk, walk_stage1, walk_stage2
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.types import Iova, Ipa, Pa, StreamId

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_msi.iommu.call_sequence import Stage1Shape
    from vmm_msi.iommu.sim.objects import Master
    from vmm_msi.types import HostDevice, HostTopology, PciAddress

#: Physical addresses of guest RAM and the witness pages: any ranges without an ITS.
RAM_PA = 0x4000_0000_0000
WITNESS_PA = 0x5000_0000_0000

#: IPS of the context descriptors: 44 bits.
_STAGE1_OUTPUT_BITS = 44
_DESCRIPTOR_SIZE = 64
#: Unit of the IPA in an event record.
_IPA_PAGE = 4096
_FIRST_TABLE = 0x10000
_LOW_BITS_OF_MSI = 3
_U32 = (1 << 32) - 1
_NO_ADDRESS = Iova(0)


class _GuestStage1(NamedTuple):
    """A stage 1 in guest RAM.

    :param descriptor: IPA of its context descriptor.
    :param tables: IPAs of the tables below the first level, by (shift, index).
    """

    config: Stage1Config
    descriptor: Ipa
    tables: dict[tuple[int, int], Ipa]


@dataclass
class _VfioBinding:
    """The binding of a character device to a file descriptor of /dev/iommu."""

    fd: SimIommufd
    dev_id: int
    attached: bool = False


@dataclass
class _Device:
    """A device, and its character device.

    :param address: the address in the MSI capability.
    :param enabled: the address that the kernel composed for the enabled MSI.
    """

    host: HostDevice
    open: bool = False
    bound: _VfioBinding | None = None
    address: Iova = _NO_ADDRESS
    enabled: Iova | None = None

    def write(self, address: Iova) -> None:
        """``pci_write_msi_msg``: write the address, and remember it."""
        self.address = self.enabled = address


class SimMachine(FdCalls):
    """A simulated host.

    :param output_bits: width of the SMMUs' output addresses (SMMU_IDR5.OAS).
    :param bindings: its kernel has the interface for guest MSI bindings.
    """

    def __init__(
        self, host: HostTopology, *, output_bits: int = 48, bindings: bool = False
    ) -> None:
        self.host = host
        self.bindings = bindings
        self._output_bits = output_bits
        self._table_sizes = table_sizes(host)
        self._doorbells = {its.doorbell: its.id for its in host.itses}
        #: ITS events that failed calls have lost, by device; they stay lost until a reboot.
        self.lost_events: Counter[PciAddress] = Counter()
        self._begin()

    def _begin(self) -> None:
        host = self.host
        lpis = LpiSpace(gicv5=any(its.is_gicv5 for its in host.itses))
        self._core = IommuCore(host, output_bits=self._output_bits)
        self._itses = {its.id: SimIts(its, lpis) for its in host.itses}
        self._devices = [_Device(device) for device in host.devices]
        self._fds: list[SimIommufd | None] = []
        self._stage1: list[_GuestStage1] = []

    @property
    def devices(self) -> int:
        """Number of devices."""
        return len(self.host.devices)

    def prepare(self, stage1: Sequence[Stage1Shape]) -> None:
        """Build the stage 1 tables."""
        self._begin()
        self._stage1 = _lay_out(stage1)

    def reset(self) -> None:
        """Reset everything but the lost events."""
        self._begin()

    def _fd(self, fd: int) -> SimIommufd:
        iommufd = self._fds[fd] if fd in range(len(self._fds)) else None
        if iommufd is None:
            raise rules.OPEN_FILE.refusal(errno.EBADF, f"file descriptor {fd}: is not open")
        return iommufd

    def _open_device(self, number: int) -> _Device:
        device = self._devices[number]
        if not device.open:
            raise rules.OPEN_FILE.refusal(
                errno.EBADF, f"{device.host.address}: its character device is not open"
            )
        return device

    def _bound_device(self, number: int) -> tuple[_Device, _VfioBinding]:
        """``vfio_device_fops_unl_ioctl``: EINVAL before the device is bound."""
        device = self._open_device(number)
        if device.bound is None:
            raise rules.BOUND.refusal(errno.EINVAL, f"{device.host.address}: is not bound")
        return device, device.bound

    def open(self) -> int:
        """Open /dev/iommu."""
        kind = BindingIommufd if self.bindings else SimIommufd
        self._fds.append(kind(self.host, self._core))
        return len(self._fds) - 1

    def close(self, fd: int) -> None:
        """Close a file descriptor; its objects stay while a device is bound to it."""
        self._fd(fd)
        self._fds[fd] = None

    def bind(self, fd: int, device: int) -> int:
        """VFIO_DEVICE_BIND_IOMMUFD: ``vfio_df_ioctl_bind_iommufd``.

        :raise BackendError: EINVAL for a bound device; the errors of :meth:`SimIommufd.bind`.
        """
        iommufd = self._fd(fd)
        opened = self._devices[device]
        opened.open = True
        if opened.bound is not None:
            raise rules.BOUND_ONCE.refusal(errno.EINVAL, f"{opened.host.address}: is bound already")
        opened.bound = _VfioBinding(iommufd, iommufd.bind(opened.host))
        return opened.bound.dev_id

    def unbind(self, device: int) -> None:
        """Close the character device: ``vfio_df_device_last_close``."""
        opened = self._open_device(device)
        if opened.bound is not None:
            self._disable(opened)
            opened.bound.fd.unbind(opened.bound.dev_id)
            opened.bound = None
        opened.open = False

    def ioas_map(self, fd: int, ioas: int, iova: int, size: int, page: int) -> None:
        """IOMMU_IOAS_MAP."""
        granule = self.host.granule
        output = RAM_PA if page == RAM_PAGE else WITNESS_PA + (page - 1) * granule
        self._fd(fd).ioas_map(ioas, iova, size, output)

    def hwpt_alloc_nested(
        self, fd: int, dev_id: int, viommu: int, config: NestedConfig, stage1: int
    ) -> int:
        """IOMMU_HWPT_ALLOC on a vIOMMU."""
        if config is NestedConfig.INVALID:
            ste = GuestSte(None)
        else:
            translates = config is NestedConfig.TRANSLATE
            ste = GuestSte(
                SteConfig(config.value), self._stage1[stage1].config if translates else None
            )
        return self._fd(fd).hwpt_alloc_nested(dev_id, viommu, ste)

    def attach(self, device: int, pt_id: int) -> None:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT: ``vfio_iommufd_physical_attach_ioas``."""
        _device, bound = self._bound_device(device)
        if bound.attached:
            bound.fd.replace(bound.dev_id, pt_id)
        else:
            bound.fd.attach(bound.dev_id, pt_id)
            bound.attached = True

    def detach(self, device: int) -> None:
        """VFIO_DEVICE_DETACH_IOMMUFD_PT; succeeds for a device that is not attached."""
        _device, bound = self._bound_device(device)
        bound.fd.detach(bound.dev_id)
        bound.attached = False

    def enable(self, device: int) -> int:
        """VFIO_DEVICE_SET_IRQS with an eventfd: ``vfio_pci_set_msi_trigger``.

        If the MSI is enabled, the kernel exchanges the eventfd and writes the address that it
        composed before: ``vfio_msi_set_vector_signal``, ``msi_domain_activate``.

        :raise BackendError: ENODEV without a table in the ITS; ENOSPC for every failure to
            allocate the interrupt (``msi_handle_pci_fail``).
        """
        bound, _binding = self._bound_device(device)
        if bound.enabled is None:
            self._allocate(bound)
        else:
            bound.address = bound.enabled
        return bound.address

    def _allocate(self, opened: _Device) -> None:
        """``its_irq_domain_alloc``, and write the address into the device.

        The kernel allocates the ITS event first and does not free it when no address is found, so
        a device whose table has no other event left gets no MSI again. A GICv5 frees it.
        """
        device = opened.host
        its, doorbell = self._itses[device.its], self.host.its_by_id[device.its].doorbell
        events = its.map_device(device, self._table_sizes[device.address])
        if self.lost_events[device.address] >= events:
            reason = f"{device.address}: the ITS has no event left for it until the host reboots"
            raise rules.NO_EVENT.refusal(errno.ENOSPC, reason)
        its.enable(device)
        try:
            self._core.set_up_msis(device, Msis(doorbell, opened.write))
        except BackendError as error:
            its.disable(device)
            self.lost_events[device.address] += not its.its.is_gicv5
            reason = f"{device.address}: no interrupt can be allocated: {error.reason}"
            raise error.seen_as(errno.ENOSPC, reason) from error

    def disable(self, device: int) -> None:
        """VFIO_DEVICE_SET_IRQS with count 0: ``vfio_pci_set_msi_trigger``.

        :raise BackendError: EINVAL when the MSI is not enabled.
        """
        bound, _binding = self._bound_device(device)
        if bound.enabled is None:
            raise rules.MSIS_ENABLED.refusal(
                errno.EINVAL, f"{bound.host.address}: its MSI is not enabled"
            )
        self._disable(bound)

    def _disable(self, device: _Device) -> None:
        if device.enabled is not None:
            self._itses[device.host.its].disable(device.host)
            self._core.free_msis(device.host)
            device.enabled = None
            device.address = _NO_ADDRESS

    def is_enabled(self, device: int) -> bool:
        """Return whether a device's MSI is enabled."""
        return self._devices[device].enabled is not None

    def msi_address(self, device: int) -> int:
        """Return the address in the MSI capability of a device whose MSI is enabled."""
        opened = self._open_device(device)
        return 0 if opened.enabled is None else opened.address

    def program(self, device: int, address: int) -> None:
        """Write the address; bits 1:0 read as zero (PCI 3.0, 6.8.1.4)."""
        self._devices[device].address = Iova(address & ~_LOW_BITS_OF_MSI)

    def raise_msi(self, device: int) -> Landing:
        """Make the device send MSI 0."""
        sender, _binding = self._bound_device(device)
        if sender.enabled is None:
            return Landing(LandingKind.NOWHERE)
        master = self._core.master(sender.host)
        walk = self._translate(master, sender.address)
        if walk is None:
            return Landing(LandingKind.NOWHERE)
        if walk.event is not None:
            return self._report(master, walk.event)
        if walk.pa is None:
            return Landing(LandingKind.NOWHERE)
        return self._landing(sender.host, walk.pa)

    def _translate(self, master: Master, iova: Iova) -> Walk | None:
        """Translate a write; None for an abort without an event (IHI 0070, 5.2)."""
        stream = master.host.stream_id
        match master.domain:
            case CoreDomain():
                return None
            case PagingHwpt(nest_parent=True) as hwpt:
                return self._stage2(hwpt, stream, iova)
            case PagingHwpt() as hwpt:
                walk = walk_stage1(hwpt.table, stream, iova)
                return walk if walk.ipa is None else walk._replace(pa=Pa(walk.ipa))
            case NestedHwpt(config=SteConfig.ABORT):
                return None
            case NestedHwpt(config=SteConfig.BYPASS) as hwpt:
                return self._stage2(hwpt.paging, stream, iova)
            case NestedHwpt() as hwpt:
                return self._nested(master, hwpt, iova)

    def _stage2(self, hwpt: PagingHwpt, stream: StreamId, iova: Iova) -> Walk | None:
        """Translate by stage 2 alone.

        An address wider than its input is an address size fault of stage 1 (IHI 0070, 3.4), which
        is recorded if the context descriptor's CD.R is set. Without a context descriptor it is
        not recorded: QEMU 11.1 ``hw/arm/smmu-common.c`` smmu_ptw.
        """
        if iova >> self._output_bits:
            return None
        return walk_stage2(hwpt.table, stream, iova, Ipa(iova))

    def _nested(self, master: Master, hwpt: NestedHwpt, iova: Iova) -> Walk:
        """Translate by a guest's stage 1, whose descriptor and tables are read through stage 2.

        This follows QEMU 11.1 in two respects. It translates the address of the first table when
        it reads the descriptor, and caches both (``hw/arm/smmuv3.c`` decode_cd). It reports a
        stage 2 fault on a table below the first as a fault of stage 1
        (``hw/arm/smmu-common.c`` smmu_ptw_64_s1).
        """
        stream = master.host.stream_id
        stage2 = hwpt.paging.table
        guest = next(stage1 for stage1 in self._stage1 if stage1.config is hwpt.stage1)
        if not master.cached:
            descriptor = guest.descriptor.align_down(_IPA_PAGE)
            fetch = walk_stage2(stage2, stream, iova, descriptor)
            if fetch.pa is None:
                return fetch
            root = guest.config.root
            if stage2.lookup(root) is None:
                kind = EventKind.F_TRANSLATION
                fault = SmmuEvent(kind, 2, stream, iova, root, table_walk=True)
                return Walk(None, None, fault)
            master.cached = True
        for key in _path(guest.config.table, iova):
            table = guest.tables.get(key)
            if table is not None and stage2.lookup(table) is None:
                return Walk(None, None, SmmuEvent(EventKind.F_TRANSLATION, 1, stream, iova))
        first = walk_stage1(guest.config.table, stream, iova)
        return first if first.ipa is None else walk_stage2(stage2, stream, iova, first.ipa)

    @staticmethod
    def _report(master: Master, event: SmmuEvent) -> Landing:
        """``arm_smmu_handle_event``: stage 1 events of a device with a vDEVICE are the guest's."""
        if master.vmaster is None or event.stage == 2:
            return Landing(LandingKind.FAULT, event=event)
        _viommu, virt_id = master.vmaster
        virtual = SmmuEvent(event.kind, event.stage, StreamId(virt_id & _U32), event.iova)
        return Landing(LandingKind.FAULT, event=virtual, guest=True)

    def _landing(self, device: HostDevice, pa: Pa) -> Landing:
        """Return where a write to a physical address lands."""
        its = self._doorbells.get(pa)
        if its is not None:
            events = self._itses[device.its].events_of(device)
            lpi = self._itses[its].first_lpi(device, events)
            return Landing(LandingKind.NOWHERE if lpi is None else LandingKind.ITS)
        granule = self.host.granule
        if 0 <= pa - WITNESS_PA < WITNESSES * granule:
            page, offset = divmod(pa - WITNESS_PA, granule)
            return Landing(LandingKind.WITNESS, page + 1, offset)
        return Landing(LandingKind.NOWHERE)


def _path(table: PageTable, iova: int) -> Iterator[tuple[int, int]]:
    """Yield (shift, index) of each table below the first level on the walk of ``iova``."""
    if iova >> table.INPUT_BITS:
        return
    page_bits = table.granule.bit_length() - 1
    index_bits = page_bits - 3
    levels = -(-(table.INPUT_BITS - page_bits) // index_bits)
    for level in range(levels - 1, 0, -1):
        shift = page_bits + level * index_bits
        yield shift, iova >> shift


def _lay_out(shapes: Sequence[Stage1Shape]) -> list[_GuestStage1]:
    """Lay stage 1 tables out in guest RAM: descriptors first, then tables in order of first use.

    Each table has a page of the granule's size, aligned to it.
    """
    laid_out = []
    free = RAM_BASE + _FIRST_TABLE
    for number, shape in enumerate(shapes):
        table = PageTable(shape.granule)
        root = -(-free // shape.granule) * shape.granule
        free = root + shape.granule
        tables: dict[tuple[int, int], Ipa] = {}
        for giova, ipa in shape.pages:
            table.map(giova, ipa, shape.granule)
            for key in _path(table, giova):
                if key not in tables:
                    tables[key] = Ipa(free)
                    free += shape.granule
        # A guest may map an output address wider than its context descriptor allows.
        table.output_bits = _STAGE1_OUTPUT_BITS
        config = Stage1Config(shape.asid, table, Ipa(root))
        descriptor = Ipa(RAM_BASE + number * _DESCRIPTOR_SIZE)
        laid_out.append(_GuestStage1(config, descriptor, tables))
    if free > RAM_BASE + RAM_SIZE:
        raise CallSequenceError(
            f"call sequence: stage 1 tables need {free - RAM_BASE:#x} bytes; valid is up to "
            f"{RAM_SIZE:#x}; map fewer pages or use smaller ones"
        )
    return laid_out
