"""``vmm-msi lab up``, ``down``, ``status`` and ``console``: the emulated host in the background."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm_msi.cli.common import add_format, print_json
from vmm_msi.cli.lab import Subcommand
from vmm_msi.terminal import print_line

if TYPE_CHECKING:
    import argparse

    from vmm_msi.lab.machine.running import RunningLab
    from vmm_msi.lab.machine.shape import Shape

# How long ``status`` waits while another command uses the agent.
_BUSY_S = 0.5
_ANSWER_S = 5.0

#: Parts of the shape that ``status`` shows.
_SHOWN = ("smmus", "itses", "devices", "pairs", "nvmes", "granule", "kernel")


def add_shape(parser: argparse.ArgumentParser, *, new: bool = False) -> None:
    """Add the arguments that describe the emulated host.

    :param new: it is a new host, not the running one.
    """
    from vmm_msi.lab.machine.shape import GRANULES, RANGES, Shape

    what = {
        "smmus": "SMMUs",
        "devices": "test devices, each in an IOMMU group of its own",
        "pairs": "test devices with two functions, which share an IOMMU group",
        "nvmes": "NVMe controllers without a namespace, each in an IOMMU group of its own",
    }
    default = Shape()
    for name, text in what.items():
        low, high = RANGES[name]
        parser.add_argument(
            f"--{name}",
            type=int,
            default=getattr(default, name),
            metavar="N",
            help=f"{text}; {low} to {high} (default: %(default)s)",
        )
    parser.add_argument(
        "--granule",
        choices=[str(granule) for granule in GRANULES],
        default=str(default.granule),
        help="page size of the kernel (default: %(default)s)",
    )
    running = "" if new else "that of the running lab, else "
    add_itses(parser, f"{running}1", None)
    add_source(parser, f"{running}stock")


def add_itses(parser: argparse.ArgumentParser, text: str, default: int | None) -> None:
    """Add ``--itses``.

    :param text: the default, for the help.
    """
    from vmm_msi.lab.machine.shape import RANGES

    low, high = RANGES["itses"]
    parser.add_argument(
        "--itses",
        type=int,
        default=default,
        metavar="N",
        help="physical ITSes, to which the devices send their MSIs in turn; more than one needs "
        f"vmm-msi lab build --itses; {low} to {high} (default: {text})",
    )


def add_source(parser: argparse.ArgumentParser, kernel: str = "stock") -> None:
    """Add the arguments that select what the emulated host is built from.

    :param kernel: the default kernel, for the help.
    """
    from vmm_msi.lab import DEFAULT_SUITE

    parser.add_argument(
        "--suite", default=DEFAULT_SUITE, help="Debian suite to use (default: %(default)s)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="cache folder (default: vmm-msi in $XDG_CACHE_HOME or ~/.cache)",
    )
    add_kernel(parser, kernel)


def add_kernel(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--kernel``.

    :param default: the default, for the help.
    """
    from vmm_msi.lab.build.kernel_flavour import NAMES

    parser.add_argument(
        "--kernel",
        metavar="KERNEL",
        help=f"kernel: {', '.join(NAMES)}, or a folder whose *.patch are applied to the stock "
        f"kernel's source in order of name (default: {default})",
    )


def kernel_of(args: argparse.Namespace) -> str | None:
    """Return the name of the kernel that the arguments select, None if they select none.

    :raise UsageError: if there is no such kernel.
    """
    from vmm_msi.lab.build.kernel_flavour import kernel_name

    return None if args.kernel is None else kernel_name(args.kernel)


def shape_of(args: argparse.Namespace) -> Shape:
    """Return the shape that the arguments describe.

    :raise UsageError: if a number is out of range.
    """
    from vmm_msi.lab.machine.shape import Shape
    from vmm_msi.types import Granule

    return Shape(
        smmus=args.smmus,
        itses=args.itses,
        devices=args.devices,
        pairs=args.pairs,
        nvmes=args.nvmes,
        granule=Granule.parse(args.granule),
        kernel=kernel_of(args),
    )


def _configure_up(parser: argparse.ArgumentParser) -> None:
    add_shape(parser, new=True)


def _run_up(args: argparse.Namespace) -> int:
    from vmm_msi.lab.build.progress import Progress
    from vmm_msi.lab.machine.keeper import up

    lab, started = up(shape_of(args), args.suite, args.cache, Progress(sys.stderr, "lab up"))
    state = f"is up after {lab.boot_s:.1f} s" if started else f"is already up since {lab.since}"
    print_line(f"the lab {state}: Linux {lab.release}, {lab.shape}")
    return 0


def _configure_nothing(_parser: argparse.ArgumentParser) -> None:
    pass


def _run_down(_args: argparse.Namespace) -> int:
    from vmm_msi.lab.build.progress import Progress
    from vmm_msi.lab.machine.keeper import down

    print_line("the lab is down" if down(Progress(sys.stderr, "lab down")) else "no lab is running")
    return 0


def _run_status(args: argparse.Namespace) -> int:
    facts = _status()
    if args.format == "json":
        print_json({"schema": 1, **facts})
        return 0
    shape = facts.pop("shape", None)
    if shape is not None:
        facts |= {name: shape[name] for name in _SHOWN}
    for name, value in facts.items():
        print_line(f"{name.replace('_', ' '):<16}{'none' if value is None else value}")
    return 0


def _status() -> dict[str, Any]:
    """Return the state of the lab in the background."""
    from vmm_msi.lab.machine.running import facts_of, keeper_pid, read_state, running

    lab = running()
    if lab is not None:
        return {"state": "running", "agent": _agent(lab), **facts_of(lab)}
    state = read_state()
    if keeper_pid() is not None:
        return {"state": "starting or stopping"}
    if state.get("phase") == "crashed":
        crash = {name: state.get(name) for name in ("when", "error", "logs")}
        return {"state": "off: it stopped by itself", **crash}
    return {"state": "off"}


def _agent(lab: RunningLab) -> str:
    """Return whether the agent of the running host answers."""
    from vmm_msi.errors import LabError
    from vmm_msi.lab.rpc.link import AgentLink

    link = AgentLink(lab.agent_socket, wait_s=_BUSY_S)
    try:
        with link:
            link.call("hello", timeout_s=_ANSWER_S)
    except LabError as error:
        return f"no answer: {error}"
    return "answers"


def _configure_console(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log",
        action="store_true",
        help="print the console's output so far and exit; the default when standard input or "
        "output is not a terminal",
    )


def _run_console(args: argparse.Namespace) -> int:
    from vmm_msi.errors import LabError
    from vmm_msi.lab.machine import console
    from vmm_msi.lab.machine.running import running

    lab = running()
    if lab is None:
        raise LabError("lab console: no lab is running; start one with vmm-msi lab up")
    if args.log or not (sys.stdin.isatty() and sys.stdout.isatty()):
        console.print_log(lab.serial_log)
    else:
        console.attach(lab.console_socket)
    return 0


SUBCOMMANDS: dict[str, Subcommand] = {
    "up": Subcommand(_configure_up, _run_up),
    "down": Subcommand(_configure_nothing, _run_down),
    "status": Subcommand(add_format, _run_status),
    "console": Subcommand(_configure_console, _run_console),
}
