"""Fuzz one target in this process: ``python -m fuzz.worker TARGET SECONDS FOLDER [random]``.

With atheris, guided by coverage, if it can be imported, else with random changes of the seeds.
Memory and the time of each input are limited. A failing input is written to FOLDER as ``crash-*``,
``timeout-*`` or ``oom-*``; the exit code is 0 if no input fails.
"""

from __future__ import annotations

import importlib
import resource
import signal
import sys
import time
from pathlib import Path

#: Limit of the process's memory in bytes.
MEMORY = 1 << 30
#: Limit of the seconds for one input, with room for a busy machine.
PATIENCE = 10
#: Limit of a generated input in bytes.
LONGEST = 1 << 16


class TooSlowError(BaseException):
    """An input took longer than :data:`PATIENCE`; no reader can catch it by mistake."""


def guided(name: str, seconds: float, folder: Path) -> None:
    """Fuzz with atheris, which exits the process."""
    import atheris

    with atheris.instrument_imports(include=["vmm_msi"]):
        target = importlib.import_module("fuzz.targets").targets()[name]
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = {
        "max_total_time": max(1, round(seconds)),
        "timeout": PATIENCE,
        "rss_limit_mb": MEMORY >> 20,
        "max_len": LONGEST,
        "artifact_prefix": f"{folder}/",
        "print_final_stats": 1,
        "verbosity": 0,
    }
    words = [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)]
    atheris.Setup(words, target)
    atheris.Fuzz()


def random_changes(name: str, seconds: float, folder: Path) -> None:
    """Fuzz with random changes."""
    from fuzz.mutate import run

    target = importlib.import_module("fuzz.targets").targets()[name]

    def call(data: bytes) -> None:
        signal.alarm(PATIENCE)
        try:
            target(data)
        except BaseException as failure:
            kind = "timeout" if isinstance(failure, TooSlowError) else "crash"
            kind = "oom" if isinstance(failure, MemoryError) else kind
            (folder / f"{kind}-{name}").write_bytes(data)
            raise
        finally:
            signal.alarm(0)

    signal.signal(signal.SIGALRM, _too_slow)
    started = time.monotonic()
    count = run(call, target.seeds(), seconds)
    sys.stderr.write(f"Done {count} runs in {time.monotonic() - started:.0f} second(s)\n")


def _too_slow(_number: int, _frame: object) -> None:
    raise TooSlowError(f"more than {PATIENCE} seconds for one input")


def main(words: list[str]) -> None:
    name, seconds, folder = words[0], float(words[1]), Path(words[2])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if "random" not in words[3:]:
        try:
            import atheris  # noqa: F401
        except ImportError:
            sys.stderr.write("no atheris: random changes, not guided by coverage\n")
        else:
            guided(name, seconds, folder)
    random_changes(name, seconds, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
