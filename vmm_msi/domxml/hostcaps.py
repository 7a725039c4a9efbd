"""Facts about a host in libvirt's capabilities: https://libvirt.org/formatcaps.html."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vmm_msi.types import Granule

if TYPE_CHECKING:
    from lxml.etree import _Element as Element


def read_page_size(root: Element) -> Granule | None:
    """Return the page size of the host's kernel: the smallest that it supports.

    :param root: a ``<capabilities>``.
    :return: None if it is missing or not a page size of an Arm kernel.
    """
    pages = root.iterfind("host/cpu/pages[@unit='KiB']")
    with suppress(ValueError):
        return Granule(min(int(page.get("size", "")) << 10 for page in pages))
    return None
