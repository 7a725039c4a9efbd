"""Read the PCI functions of a host: their sysfs entries, configuration spaces and aliases."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.host.files import UnreadableError
from vmm_msi.host.pci.aliases import PciPlace, rids
from vmm_msi.host.pci.config_space import PciConfig, read_config
from vmm_msi.host.pci.sysfs import PciDevices

if TYPE_CHECKING:
    from vmm_msi.host.files import HostTree
    from vmm_msi.types import PciAddress, PciFunction


def read_functions(tree: HostTree) -> tuple[PciFunction, ...]:
    """Return the PCI functions that the kernel lists, by address.

    A value that a folder does not have or that cannot be read stays unknown.

    :raise UnreadableError: when the folder of all devices cannot be listed.
    :raise InputError: when a file has something that the kernel does not write there.
    """
    devices = PciDevices(tree)
    places = {address: _place(devices, address) for address in devices.addresses()}
    functions = []
    for address, place in places.items():
        function = devices.function(address)
        group = function.iommu_group
        # Without the link, the bridges above are unknown.
        aliases = rids(place, places) if devices.is_linked(address) else None
        functions.append(
            replace(
                function,
                reserved=None if group is None else devices.reserved_regions(group),
                vectors=place.config.vectors,
                ats=place.config.ats,
                pasid=place.config.pasid,
                dma_rids=() if aliases is None else aliases[0],
                msi_rid=None if aliases is None else aliases[1],
            )
        )
    return tuple(functions)


def _place(devices: PciDevices, address: PciAddress) -> PciPlace:
    vendor, device = devices.ids(address)
    try:
        config = read_config(partial(devices.read_config, address))
    except UnreadableError:
        config = PciConfig()
    return PciPlace(address, vendor or 0, device or 0, config, devices.bridge(address))
