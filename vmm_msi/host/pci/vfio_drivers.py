"""Decide whether a PCI device is bound to VFIO: to vfio-pci or to one of its variant drivers.

Vendors write variant drivers (mlx5_vfio_pci, hisi_acc_vfio_pci, nvgrace_gpu_vfio_pci, …). What
they have in common, the strongest evidence first:

- The VFIO core gives a device that such a driver is bound to a child of the class ``vfio-dev``
  (Linux 6.1, ``drivers/vfio/vfio_main.c`` vfio_init_device), a folder in sysfs.
- Their device ids carry PCI_ID_F_VFIO_DRIVER_OVERRIDE (``include/linux/mod_devicetable.h``), which
  becomes the prefix ``vfio_pci:`` in ``modules.alias`` (``scripts/mod/file2alias.c``
  do_pci_entry). libvirt looks for variant drivers there (``src/util/virpci.c``
  virPCIDeviceFindBestVFIOVariant).
- The names of all drivers in ``drivers/vfio/pci`` end in ``vfio-pci`` or ``vfio_pci``. libvirt's
  node devices have only the name, as do captures without the two above.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_msi.host.files import UnreadableError, text
from vmm_msi.types.pci_function import VfioEvidence

if TYPE_CHECKING:
    from vmm_msi.host.files import HostTree
    from vmm_msi.types import PciFunction

#: Drivers that leave the DMA of a device alone, beside those of VFIO: Linux
#: ``include/linux/pci.h`` driver_managed_dma.
_DRIVER_MANAGED_DMA = ("pci-stub", "pcieport")

_RELEASE = "/proc/sys/kernel/osrelease"
_VFIO_ALIAS = re.compile(rb"^alias vfio_pci:\S+ (\w+)$", re.MULTILINE)


#: The evidence in words, for findings and messages.
EVIDENCE_TEXT = {
    VfioEvidence.VFIO_DEV: "a VFIO driver: the device has vfio-dev",
    VfioEvidence.MODULES_ALIAS: "a VFIO driver: modules.alias lists it",
    VfioEvidence.DRIVER_NAME: "a VFIO driver by its name",
}


def vfio_evidence(function: PciFunction) -> VfioEvidence | None:
    """Return what shows that a function is bound to VFIO; None if it is not.

    :param function: of any source; if the source reports only the driver's name, the name decides.
    """
    if function.vfio is not None:
        return function.vfio
    if _module(function.driver or "").endswith("vfio_pci"):
        return VfioEvidence.DRIVER_NAME
    return None


def host_driver_of(function: PciFunction) -> str | None:
    """Return the driver with which the host itself uses a function; None if it does not.

    The kernel assigns an IOMMU group only if the host uses none of its devices: drivers of VFIO
    and others with driver_managed_dma (``include/linux/pci.h``) do not count.
    """
    if function.driver in _DRIVER_MANAGED_DMA or vfio_evidence(function) is not None:
        return None
    return function.driver


def vfio_modules(tree: HostTree) -> frozenset[str]:
    """Return the modules that a host's ``modules.alias`` lists as VFIO drivers for PCI.

    Modules that are built into the kernel are not in that file.
    """
    try:
        release = text(tree, _RELEASE)
        if not release or "/" in release:
            return frozenset()
        aliases = tree.read(f"/lib/modules/{release}/modules.alias")
    except UnreadableError:
        return frozenset()
    return frozenset(name.decode("ascii") for name in _VFIO_ALIAS.findall(aliases or b""))


def is_listed(driver: str, modules: frozenset[str]) -> bool:
    """Return whether a driver is one of :func:`vfio_modules`."""
    return _module(driver) in modules


def _module(driver: str) -> str:
    """Return the name of a driver's module, which has no hyphens: ``vfio_pci`` for ``vfio-pci``."""
    return driver.replace("-", "_")
