"""Fuzz every target for a share of the time: ``make fuzz``, FUZZ_SECONDS in all (default 60).

Each target runs in a process of its own. Failing inputs are kept in a folder that is printed at the
end.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fuzz.targets import targets

from vmm_msi.report.columns import columns

TESTS = Path(__file__).resolve().parents[1]
_DONE = re.compile(r"Done (\d+) (?:runs )?in (\d+) second")
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_NEW = re.compile(r"stat::new_units_added:\s*(\d+)")
_PEAK = re.compile(r"stat::peak_rss_mb:\s*(\d+)")


@dataclass(frozen=True)
class Result:
    """The result of one target.

    :param runs: number of inputs.
    :param new_inputs: inputs with new coverage; None if coverage is not measured.
    :param failure: the output of the process, if an input fails.
    """

    name: str
    runs: int
    new_inputs: int | None
    peak_mb: int | None
    failure: str | None


def fuzz(name: str, seconds: float, folder: Path, *words: str) -> Result:
    """Run the process of one target."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.worker", name, str(seconds), str(folder), *words],
        capture_output=True,
        text=True,
        errors="replace",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        timeout=seconds + 120,
        check=False,
    )
    output = done.stdout + done.stderr
    inputs = [path for kind in ("crash", "timeout", "oom") for path in folder.glob(f"{kind}-*")]
    failed = bool(done.returncode or inputs)
    return Result(
        name,
        _number(_EXECUTED, output) or _number(_DONE, output) or 0,
        _number(_NEW, output),
        _number(_PEAK, output),
        f"{name}: {', '.join(map(str, inputs)) or folder}\n{output[-6000:]}" if failed else None,
    )


def _number(pattern: re.Pattern[str], output: str) -> int | None:
    match = pattern.search(output)
    return int(match[1]) if match else None


def main() -> int:
    seconds = float(os.environ.get("FUZZ_SECONDS", "60"))
    names = [*targets()]
    folder = Path(tempfile.mkdtemp(prefix="vmm-msi-fuzz-"))
    results = [fuzz(name, seconds / len(names), folder / name) for name in names]
    rows = [
        [result.name, f"{result.runs:,}", str(result.new_inputs or "-"),
         str(result.peak_mb or "-"), "FAILED" if result.failure else "passed"]
        for result in results
    ]  # fmt: skip
    print("\n".join(columns([["target", "runs", "new inputs", "peak MB", "result"], *rows])))
    failures = [result.failure for result in results if result.failure]
    for failure in failures:
        print(f"\n{failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
