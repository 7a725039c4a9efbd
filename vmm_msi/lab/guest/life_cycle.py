"""What happens to the devices of this machine, a guest, while it runs."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

_PCI = Path("/sys/bus/pci")
_LIMIT_S = 30.0
_POLL_S = 0.05
# Only with retain_initrd on the kernel's command line (init/initramfs.c do_populate_rootfs).
_INITRD = Path("/sys/firmware/initrd")
# Linux include/uapi/asm-generic/unistd.h and include/uapi/linux/reboot.h.
_KEXEC_FILE_LOAD = 294
_REBOOT_KEXEC = 0x4558_4543


def reload_driver(address: str, *, enumerate_again: bool = False) -> None:
    """Unbind a device from its driver and bind it again; return when its drive is back.

    :param enumerate_again: remove the device and have Linux enumerate it again, which gives it
        another IOMMU domain.
    :raise ValueError: when it has no driver, or its drive does not come back.
    """
    folder = _PCI / "devices" / address
    driver = folder / "driver"
    if not driver.exists():
        raise ValueError(f"{address} has no driver")
    if enumerate_again:
        (folder / "remove").write_text("1", encoding="ascii")
        (_PCI / "rescan").write_text("1", encoding="ascii")
    else:
        target = driver.resolve()
        (target / "unbind").write_text(address, encoding="ascii")
        (target / "bind").write_text(address, encoding="ascii")
    deadline = time.monotonic() + _LIMIT_S
    while not any(folder.glob("nvme/nvme*/nvme*n*")):
        if time.monotonic() > deadline:
            raise ValueError(f"{address}: its drive is not back after {_LIMIT_S:.0f} s")
        time.sleep(_POLL_S)


def load_kernel(image: str, words: str) -> None:
    """Load a kernel that :func:`start_kernel` starts, with this machine's initrd (kexec).

    :param image: its file.
    :param words: additions to this machine's kernel command line.
    :raise OSError: when this machine's kernel refuses, or did not keep its initrd.
    """
    line = f"{Path('/proc/cmdline').read_text('ascii').strip()} {words}".encode("ascii")
    with Path(image).open("rb") as kernel, _INITRD.open("rb") as initrd:
        descriptors = kernel.fileno(), initrd.fileno()
        _call("syscall", _KEXEC_FILE_LOAD, *descriptors, ctypes.c_ulong(len(line) + 1), line, 0)


def start_kernel() -> None:
    """Start the loaded kernel in the place of this machine's; the call does not return.

    :raise OSError: when none is loaded.
    """
    _call("reboot", _REBOOT_KEXEC)


def _call(function: str, *arguments: object) -> None:
    """Call a function of the C library.

    :raise OSError: when it fails.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library[function](*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
