"""Fuzz every target for a share of the time: ``make fuzz``, FUZZ_SECONDS in all (default 60).

Each is a process of its own. What a target fails for is left in a folder that is named at the end.
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
    """What came of one target.

    :param runs: how often it was called.
    :param found: inputs with new coverage; None where nothing is measured.
    :param failure: what was printed, where an input was found that it fails for.
    """

    name: str
    runs: int
    found: int | None
    peak_mb: int | None
    failure: str | None


def fuzz(name: str, seconds: float, folder: Path, *words: str) -> Result:
    """Run one target's process."""
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
    said = done.stdout + done.stderr
    left = [path for kind in ("crash", "timeout", "oom") for path in folder.glob(f"{kind}-*")]
    failed = bool(done.returncode or left)
    return Result(
        name,
        _number(_EXECUTED, said) or _number(_DONE, said) or 0,
        _number(_NEW, said),
        _number(_PEAK, said),
        f"{name}: {', '.join(map(str, left)) or folder}\n{said[-6000:]}" if failed else None,
    )


def _number(pattern: re.Pattern[str], said: str) -> int | None:
    found = pattern.search(said)
    return int(found[1]) if found else None


def main() -> int:
    seconds = float(os.environ.get("FUZZ_SECONDS", "60"))
    names = [*targets()]
    folder = Path(tempfile.mkdtemp(prefix="vmm-msi-fuzz-"))
    results = [fuzz(name, seconds / len(names), folder / name) for name in names]
    rows = [
        [each.name, f"{each.runs:,}", str(each.found or "-"), str(each.peak_mb or "-"),
         "FAILED" if each.failure else "held"]
        for each in results
    ]  # fmt: skip
    print("\n".join(columns([["target", "runs", "new inputs", "peak MB", "result"], *rows])))
    failures = [each.failure for each in results if each.failure]
    for failure in failures:
        print(f"\n{failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
