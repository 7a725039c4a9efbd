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
from typing import TYPE_CHECKING

from fuzz.targets import targets

from vmm_msi.report.columns import columns

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def fuzz(names: Sequence[str], seconds: float, folder: Path, mode: str = "guided") -> list[Result]:
    """Run the process that fuzzes targets, each for ``seconds``, and return their results.

    :param folder: gets a folder for each target.
    :param mode: as :mod:`fuzz.worker` has it.
    """
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.worker", mode, str(seconds), str(folder), *names],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        timeout=len(names) * seconds + 300,
        check=False,
    )
    passed = done.stdout.split()
    return [_result(name, folder / name, name in passed, done.stderr) for name in names]


def _result(name: str, folder: Path, has_passed: bool, errors: str) -> Result:
    """Return the result of one target.

    :param errors: what the process printed that all targets share.
    """
    path = folder / "output"
    output = errors + (path.read_text(errors="replace") if path.exists() else "")
    inputs = [path for kind in ("crash", "timeout", "oom") for path in folder.glob(f"{kind}-*")]
    failed = bool(inputs) or not has_passed
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
    results = fuzz(names, seconds / len(names), folder)
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
