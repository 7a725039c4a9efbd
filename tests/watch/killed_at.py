"""Run ``vmm-msi`` and kill the process right before one of its calls of libvirt.

The arguments are the number of the call and the command line.
"""

from __future__ import annotations

import os
import signal
import sys

from provision.failing import Failing

from vmm_msi.cli import main
from vmm_msi.libvirt_driver import Connection

real = Connection.__init__


def begin(self, raw, uri, *, readonly):
    at = int(sys.argv[1])
    killing = Failing(raw, at, False, lambda: os.kill(os.getpid(), signal.SIGKILL))
    real(self, killing, uri, readonly=readonly)


Connection.__init__ = begin
sys.exit(main(sys.argv[2:]))
