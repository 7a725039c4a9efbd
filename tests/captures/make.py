"""Make the captures in this folder again on the emulated host; requires root, takes a minute.

``vmm-msi topology capture`` writes them on a real Linux 7.2 kernel: ``two-smmus`` with the tables
that the lab corrected, ``no-canwbs`` with QEMU's own.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

from vmm_msi.lab.build.progress import Progress
from vmm_msi.lab.machine.emulated_host import LabHost
from vmm_msi.lab.machine.shape import Shape
from vmm_msi.lab.rpc.link import AgentLink

HERE = Path(__file__).parent
NAME = "host.tar.zst"


def make(name: str, *, canwbs: bool) -> None:
    shape = Shape(smmus=2, devices=4, pairs=1, nvmes=1)
    progress = Progress(sys.stderr, name)
    with (
        LabHost(shape, progress=progress, canwbs=canwbs) as host,
        AgentLink(host.agent_socket) as link,
    ):
        result = link.call("command", argv=["topology", "capture", "-o", NAME], fetch=[NAME])
        print(result["stderr"], end="")
        (HERE / f"{name}.tar.zst").write_bytes(base64.b64decode(result["files"][NAME]))


if __name__ == "__main__":
    make("two-smmus", canwbs=True)
    make("no-canwbs", canwbs=False)
