"""Pass an open /dev/iommu to a guest that libvirt starts, instead of letting libvirt open it.

A program that keeps the iommufd can map doorbells in it itself, or watch what the guest's devices
do. The definition names the open file as a group (``attach --fdgroup NAME``), and libvirt takes it
from the connection that starts the guest: https://libvirt.org/formatdomain.html#iommufd and
https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainFDAssociate.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.arguments import text_value
from vmm_msi.errors import HypervisorError, RefusedError

if TYPE_CHECKING:
    from vmm_msi.libvirt_driver import Connection

DEV_IOMMU = Path("/dev/iommu")


def open_iommufd(path: Path = DEV_IOMMU) -> int:
    """Open the kernel's iommufd (Linux ``Documentation/userspace-api/iommufd.rst``).

    :return: a file descriptor that the caller closes; child processes do not inherit it.
    :raise HypervisorError: if it does not exist, or this user may not open it.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HypervisorError(
            f"opening {path}: {error.strerror}; it requires a kernel with CONFIG_IOMMUFD and the "
            "right to read and write it"
        ) from error


def pass_iommufd(connection: Connection, domain: str, fd: int) -> None:
    """Pass an open /dev/iommu to a guest that is off; start it on the same connection next.

    libvirt keeps a copy while this connection is open, and QEMU while it runs; the caller may use
    and close its own. Only connections over a Unix socket can pass files.

    :param fd: what :func:`open_iommufd` returned.
    :raise RefusedError: if the definition names no group for it, or the guest is running.
    :raise HypervisorError: if libvirt refuses.
    """
    doing = f"passing /dev/iommu to {domain}"
    state = connection.state(text_value("guest", domain))
    group = state.definition.iommufd_fdgroup
    if group is None:
        raise RefusedError(
            f"{doing}: its definition has no <iommufd fdgroup>; attach its devices with --fdgroup "
            "NAME"
        )
    if state.running is not None:
        raise RefusedError(f"{doing}: it is running already; shut it down first")
    connection.pass_fds(state.definition.name, group, [fd])
