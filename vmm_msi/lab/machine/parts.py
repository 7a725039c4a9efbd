"""Find or build what an emulated host is started from: roots, images, the package, QEMU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.arm64_root import ensure_armroot
from vmm_msi.lab.build.images import ensure_images
from vmm_msi.lab.build.its_emulator import ensure_its_emulator
from vmm_msi.lab.build.kernel_flavour import STOCK
from vmm_msi.lab.build.kernel_image import ensure_kernel
from vmm_msi.lab.build.package_layer import package_layer
from vmm_msi.lab.build.root import ensure_root
from vmm_msi.lab.machine.host_xml import ROOT_TAG

if TYPE_CHECKING:
    from pathlib import Path

    from vmm_msi.lab.build.images import LabImages
    from vmm_msi.lab.build.its_emulator import ItsEmulator
    from vmm_msi.lab.build.progress import Progress
    from vmm_msi.lab.build.root import LabRoot
    from vmm_msi.lab.machine.shape import Shape

#: The name of the emulator's folder among those that libvirtd can read.
EMULATOR_TAG = "emulator"


@dataclass(frozen=True)
class Parts:
    """The cached parts of a host.

    :ivar layer: the archive with this package.
    :ivar arm_root: the root of its own libvirt; None for a host without guests.
    :ivar guest_kernel: the kernel of its guests, always the stock one; None likewise.
    :ivar emulator: the QEMU of a host with several ITSes; None for one ITS.
    """

    root: LabRoot
    images: LabImages
    layer: Path
    arm_root: LabRoot | None = None
    guest_kernel: Path | None = None
    emulator: ItsEmulator | None = None

    @property
    def lent(self) -> dict[str, Path]:
        """The folders that the host's libvirtd can read, by their names."""
        folders = {}
        if self.arm_root is not None:
            folders[ROOT_TAG] = self.arm_root.path.parent
        if self.emulator is not None:
            folders[EMULATOR_TAG] = self.emulator.path.parent
        return folders


def ensure_parts(
    shape: Shape,
    suite: str = DEFAULT_SUITE,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Parts:
    """Return the parts of a host; build those that the cache does not have.

    :raise LabError: when a part cannot be built.
    """
    host_tools.require_root("running the emulated host (libvirtd with its own chroot and mounts)")
    root = ensure_root(suite, cache, progress)
    kernel = shape.kernel or STOCK
    images = ensure_images(suite, shape.granule, cache, progress, kernel)
    emulator = ensure_its_emulator(suite, cache, progress) if shape.its_count > 1 else None
    layer = package_layer(root, cache)
    if not shape.guests:
        return Parts(root, images, layer, emulator=emulator)
    # Guests run an unchanged Linux, whatever the host runs.
    guest_kernel = ensure_kernel(suite, shape.granule, cache, progress).path
    arm_root = ensure_armroot(suite, cache, progress)
    return Parts(root, images, layer, arm_root, guest_kernel, emulator)
