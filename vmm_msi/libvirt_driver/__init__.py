"""libvirt, behind a few typed calls: the only package that imports it.

``connection`` has the calls, ``change`` replaces a definition or leaves it as it was, ``events``
tells what happens to guests, ``errors`` translates what libvirt raises.
"""

from vmm_msi.libvirt_driver.change import redefine, undo_error, verify_defined
from vmm_msi.libvirt_driver.connection import Connection, connect

__all__ = ["Connection", "connect", "redefine", "undo_error", "verify_defined"]
