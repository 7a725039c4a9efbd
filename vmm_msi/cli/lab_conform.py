"""``vmm-msi lab conform``: compare the simulator with the real kernel, call by call."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_format, print_json
from vmm_msi.cli.lab import Subcommand
from vmm_msi.cli.lab_host import add_shape, shape_of
from vmm_msi.terminal import print_line, print_lines

if TYPE_CHECKING:
    import argparse

    from vmm_msi.iommu.call_sequence import CallSequence
    from vmm_msi.lab.build.progress import Progress
    from vmm_msi.lab.conformance.conform import ConformanceReport

#: Exit code when simulator and kernel disagree.
MISMATCH = 1

_COUNT = 200
_SEED = 1
_MOST = 10_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--count",
        type=int,
        default=_COUNT,
        metavar="N",
        help="number of random call sequences (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=_SEED,
        metavar="S",
        help="random seed; the same seed gives the same call sequences (default: %(default)s)",
    )
    parser.add_argument(
        "--replay",
        type=Path,
        metavar="FILE",
        help="run the call sequence in FILE, written by --save, instead of random ones",
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="DIR",
        help="write a shrunk call sequence for each mismatch to DIR, for --replay",
    )
    add_shape(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Compare simulator and kernel; return 1 if any result differs."""
    from vmm_msi.errors import UsageError
    from vmm_msi.lab.build.progress import Progress

    if not 1 <= args.count <= _MOST:
        raise UsageError(f"lab conform: --count {args.count}; valid is 1 to {_MOST}")
    replayed = None if args.replay is None else _read(args.replay)
    progress = Progress(sys.stderr, "lab conform")
    report = _compare(args, replayed, progress)
    if args.save is not None:
        _save(report, args.save)
    _print(args, report, None if replayed else args.seed)
    return MISMATCH if report.mismatches else 0


def _read(path: Path) -> CallSequence:
    from vmm_msi.errors import CallSequenceError
    from vmm_msi.iommu.call_sequence_json import sequence_from_json
    from vmm_msi.tomlfile import read_text

    text = read_text(path, CallSequenceError)
    try:
        return sequence_from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CallSequenceError(f"{path}: not JSON: {error}") from error
    except CallSequenceError as error:
        raise CallSequenceError(f"{path}: {error}") from error


def _compare(
    args: argparse.Namespace, replayed: CallSequence | None, progress: Progress
) -> ConformanceReport:
    from vmm_msi.iommu.sim.call_machine import SimMachine
    from vmm_msi.lab.conformance import conform
    from vmm_msi.lab.conformance.random_sequences import draw_sequences
    from vmm_msi.lab.machine.emulated_host import keep_logs, lab_for, logs_folder
    from vmm_msi.lab.rpc.link import AgentLink

    begun = time.monotonic()
    with (
        lab_for(shape_of(args), suite=args.suite, cache=args.cache, progress=progress) as lab,
        AgentLink(lab.agent_socket) as link,
    ):
        link.call("hello")
        ready = time.monotonic()
        host = conform.conform_host(lab.board.topology, link.call("devices"))
        side = conform.KernelSide(link, [device.address for device in host.devices])
        simulator = SimMachine(
            host, output_bits=conform.OUTPUT_BITS, bindings=conform.has_bindings(side)
        )
        drawn = [replayed] if replayed else draw_sequences(simulator, args.count, args.seed)
        progress.stage(f"comparing the simulator with Linux: {len(drawn)} call sequences")
        report = conform.compare(
            simulator,
            side,
            drawn,
            lambda done, total: progress.count(done, total, f"{done}/{total}"),
        )
        progress.clear()
        logs = logs_folder(args.cache)
        if report.mismatches and keep_logs(lab.serial_log.parent, logs):
            progress.stage(f"logs of the emulated host: {logs}")
    report.seconds = {"start": ready - begun, **report.seconds}
    report.seconds["total"] = time.monotonic() - begun
    return report


def _save(report: ConformanceReport, folder: Path) -> None:
    from vmm_msi.errors import OutputError
    from vmm_msi.iommu.call_sequence_json import sequence_to_json
    from vmm_msi.output import write_output

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for mismatch in report.mismatches:
            path = folder / f"mismatch-{mismatch.number}.json"
            document = json.dumps(sequence_to_json(mismatch.sequence), indent=1)
            write_output(path, f"{document}\n".encode(), force=True)
    except OSError as error:
        raise OutputError(f"writing {error.filename or folder}: {error.strerror}") from error


def _print(args: argparse.Namespace, report: ConformanceReport, seed: int | None) -> None:
    from vmm_msi.iommu.call_sequence_json import sequence_to_json
    from vmm_msi.lab.conformance.conform import lines, to_json

    if args.format == "json":
        print_json(to_json(report, seed))
        return
    facts: dict[str, object] = {
        "call sequences": report.sequences,
        "steps": report.steps,
        "mismatches": len(report.mismatches),
    }
    if seed is not None:
        facts["seed"] = seed
    facts |= {f"{name} (s)": f"{value:.1f}" for name, value in report.seconds.items()}
    for name, value in facts.items():
        print_line(f"{name:<16}{value}")
    for mismatch in report.mismatches:
        print_line()
        print_line(f"call sequence {mismatch.number}:")
        print_lines(f"  {line}" for line in lines(mismatch))
        print_line(f"  to replay: {json.dumps(sequence_to_json(mismatch.sequence))}")


SUBCOMMANDS: dict[str, Subcommand] = {"conform": Subcommand(configure, run)}
