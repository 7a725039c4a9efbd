"""What libvirt says of its host: https://libvirt.org/formatcaps.html."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vmm_msi.types import Granule

if TYPE_CHECKING:
    from lxml.etree import _Element as Element


def read_page_size(root: Element) -> Granule | None:
    """Return the page size of the host's kernel, the smallest it has pages of.

    :param root: a ``<capabilities>``.
    :return: None where it is not said, or is none of an Arm kernel.
    """
    pages = root.iterfind("host/cpu/pages[@unit='KiB']")
    with suppress(ValueError):
        return Granule(min(int(page.get("size", "")) << 10 for page in pages))
    return None
