"""Find or build the emulated Arm host's boot images: a kernel and an initial RAM file system.

QEMU's initrd consists of several archives, which the kernel unpacks one after the other::

    concatenate([override, images.initrd.read_bytes(), package_layer(root).read_bytes()])

``override`` has ACPI tables that replace QEMU's; it is first and not compressed
(Linux ``Documentation/admin-guide/acpi/initrd_table_override.rst``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.cache import check_suite
from vmm_msi.lab.build.kernel_flavour import STOCK
from vmm_msi.lab.build.kernel_image import TOOLS as KERNEL_TOOLS
from vmm_msi.lab.build.kernel_image import LabKernel, ensure_kernel, find_kernel
from vmm_msi.lab.build.root import ensure_root
from vmm_msi.lab.build.root_recipe import TOOLS as ROOT_TOOLS
from vmm_msi.lab.build.userland import TOOLS as USERLAND_TOOLS
from vmm_msi.lab.build.userland import UserLand, ensure_userland, find_userland
from vmm_msi.types import Granule

if TYPE_CHECKING:
    from pathlib import Path

    from vmm_msi.lab.build.progress import Progress


@dataclass(frozen=True)
class LabImages:
    """A kernel and the user land of the same suite.

    :ivar kernel: the kernel's image.
    :ivar initrd: the user land, a compressed archive.
    :ivar release: the kernel's version, as upstream counts, such as ``7.2.12``.
    :ivar granule: the kernel's page size.
    :ivar suite: the Debian suite both are from.
    :ivar flavour: the kernel's name (:mod:`vmm_msi.lab.build.kernel_flavour`).
    :ivar built: when the newer of the two was built, in UTC, ISO 8601.
    :ivar cached: both were in the cache.
    """

    kernel: Path
    initrd: Path
    release: str
    granule: Granule
    suite: str
    built: str
    cached: bool
    flavour: str = STOCK


def find_images(
    suite: str = DEFAULT_SUITE,
    granule: Granule = Granule.K4,
    cache: Path | None = None,
    kernel: str = STOCK,
) -> LabImages | None:
    """Return the images of ``suite`` if the cache has both; the arguments are those of the build.

    :raise UsageError: when an argument cannot be used.
    """
    check_suite(suite, "lab build")
    userland = find_userland(suite, cache)
    image = find_kernel(suite, granule, cache, kernel)
    return _pair(suite, kernel, image, userland) if image and userland else None


def ensure_images(
    suite: str = DEFAULT_SUITE,
    granule: Granule = Granule.K4,
    cache: Path | None = None,
    progress: Progress | None = None,
    kernel: str = STOCK,
) -> LabImages:
    """Return the images of ``suite``; build those that the cache does not have.

    :param suite: a Debian suite, such as ``forky``.
    :param granule: the kernel's page size: 4K or 64K.
    :param cache: the folder of the cache; this user's when ``None``.
    :param progress: progress output; silent when ``None``.
    :param kernel: the kernel's name (:func:`vmm_msi.lab.build.kernel_flavour.kernel_name`).
    :raise UsageError: when an argument cannot be used.
    :raise LabError: when they cannot be built.
    """
    images = find_images(suite, granule, cache, kernel)
    if images is not None:
        return images
    # Report everything that the machine lacks at once, before building the first image.
    host_tools.require_tools({*KERNEL_TOOLS, *USERLAND_TOOLS, *ROOT_TOOLS})
    root = partial(ensure_root, suite, cache, progress)
    userland = ensure_userland(suite, root, cache, progress)
    image = ensure_kernel(suite, granule, cache, progress, kernel)
    return _pair(suite, kernel, image, userland)


def _pair(suite: str, kernel: str, image: LabKernel, userland: UserLand) -> LabImages:
    return LabImages(
        kernel=image.path,
        initrd=userland.path,
        release=image.release,
        granule=image.granule,
        suite=suite,
        built=max(image.built, userland.built),
        cached=image.cached and userland.cached,
        flavour=kernel,
    )
