"""What happens to the devices of this machine, a guest, while it runs."""

from __future__ import annotations

import time
from pathlib import Path

_PCI = Path("/sys/bus/pci")
_LIMIT_S = 30.0
_POLL_S = 0.05


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
