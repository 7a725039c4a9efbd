"""Fuzz targets one after another: ``python -m fuzz.worker guided|random SECONDS FOLDER TARGET…``.

With atheris, guided by coverage, if it can be imported, else with random changes of the seeds. Each
target runs in a process of its own, forked once the modules are imported, which takes atheris
seconds. Memory and the time of each input are limited. A failing input is written to FOLDER/TARGET
as ``crash-*``, ``timeout-*`` or ``oom-*``, what the process prints to ``output`` there. The names
of targets without a failing input are printed; the exit code is 0 if all are.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fuzz.targets import Target

#: Limit of the process's memory in bytes.
MEMORY = 1 << 30
#: Limit of the seconds for one input, with room for a busy machine.
PATIENCE = 10
#: Limit of a generated input in bytes.
LONGEST = 1 << 16


class TooSlowError(BaseException):
    """An input took longer than :data:`PATIENCE`; no reader can catch it by mistake."""


def import_targets(*, is_guided: bool) -> Mapping[str, Target]:
    """Import the readers, for atheris with its instructions in their code."""
    if not is_guided:
        return importlib.import_module("fuzz.targets").targets()
    import atheris

    with atheris.instrument_imports(include=["vmm_msi"]):
        return importlib.import_module("fuzz.targets").targets()


def guided(target: Target, seconds: float, folder: Path) -> None:
    """Fuzz with atheris, which exits the process."""
    import atheris

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


def random_changes(target: Target, seconds: float, folder: Path) -> None:
    """Fuzz with random changes."""
    from fuzz.mutate import run

    def call(data: bytes) -> None:
        signal.alarm(PATIENCE)
        try:
            target(data)
        except BaseException as failure:
            kind = "timeout" if isinstance(failure, TooSlowError) else "crash"
            kind = "oom" if isinstance(failure, MemoryError) else kind
            (folder / f"{kind}-{target.name}").write_bytes(data)
            raise
        finally:
            signal.alarm(0)

    signal.signal(signal.SIGALRM, _too_slow)
    started = time.monotonic()
    count = run(call, target.seeds(), seconds)
    sys.stderr.write(f"Done {count} runs in {time.monotonic() - started:.0f} second(s)\n")


def _too_slow(_number: int, _frame: object) -> None:
    raise TooSlowError(f"more than {PATIENCE} seconds for one input")


def _has_atheris() -> bool:
    try:
        import atheris  # noqa: F401
    except ImportError:
        sys.stderr.write("no atheris: random changes, not guided by coverage\n")
        return False
    return True


def in_child(
    fuzz: Callable[[Target, float, Path], None], target: Target, seconds: float, folder: Path
) -> bool:
    """Fuzz one target in a process of its own; return whether no input fails.

    The child exits as any process does: atheris writes a failing input at its exit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    fuzz(target, seconds, folder)
    sys.exit()


def main(words: list[str]) -> int:
    mode, seconds, folder, names = words[0], float(words[1]), Path(words[2]), words[3:]
    is_guided = mode == "guided" and _has_atheris()
    known = import_targets(is_guided=is_guided)
    fuzz = guided if is_guided else random_changes
    code = 0
    for name in names:
        if in_child(fuzz, known[name], seconds, folder / name):
            print(name, flush=True)
        else:
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
