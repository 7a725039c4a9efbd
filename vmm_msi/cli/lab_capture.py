"""``vmm-msi lab capture``: write a capture of the emulated host, as a sample to read."""

from __future__ import annotations

import base64
import sys
from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_output, output_path
from vmm_msi.cli.lab import Subcommand
from vmm_msi.cli.lab_host import add_shape, shape_of
from vmm_msi.terminal import print_error

if TYPE_CHECKING:
    import argparse

_NAME = "host.tar.zst"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_shape(parser)
    add_output(parser, "the capture, such as host.tar.zst,", required=True)


def run(args: argparse.Namespace) -> int:
    """Run ``topology capture`` in the emulated host and save its file."""
    from vmm_msi.errors import LabError
    from vmm_msi.lab.build.progress import Progress
    from vmm_msi.lab.machine.emulated_host import lab_for
    from vmm_msi.lab.rpc.link import AgentLink
    from vmm_msi.output import check_target, write_output

    target = output_path(args)
    check_target(target, force=args.force)
    progress = Progress(sys.stderr, "lab capture")
    shape = shape_of(args)
    with (
        lab_for(shape, suite=args.suite, cache=args.cache, progress=progress) as lab,
        AgentLink(lab.agent_socket) as link,
    ):
        reply = link.call("command", argv=["topology", "capture", "-o", _NAME], fetch=[_NAME])
    progress.clear()
    if reply["status"]:
        raise LabError(f"capturing the emulated host: {reply['stderr'].strip()}")
    write_output(target, base64.b64decode(reply["files"][_NAME]), force=args.force)
    for line in reply["stderr"].splitlines():
        print_error(line.replace(_NAME, str(target or "standard output")))
    return 0


SUBCOMMANDS: dict[str, Subcommand] = {"capture": Subcommand(configure, run)}
