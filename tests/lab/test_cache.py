"""The lab's cache after complete, interrupted, killed, failed and concurrent builds."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import unavailable

from vmm_msi.errors import LabError
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build import host_tools


def entry(folder, *, resumable=True, key="one"):
    return caches.entry(folder, "thing", "the thing", ("word",), {"key": key}, resumable=resumable)


def read(target):
    try:
        return (target.path / "content").read_text()
    except OSError:
        return None


def fill(target, build):
    return caches.fill(target, lambda: read(target), build)


def whole(work):
    """Build the content, and leave an intermediate folder beside it."""
    (work / "objects").mkdir(exist_ok=True)
    (work / "kept").mkdir()
    (work / "kept/content").write_text("whole")
    return work / "kept"


def never(_work):
    raise AssertionError("built again")


def folders(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_path_depends_on_the_key(tmp_path):
    assert entry(tmp_path).path == entry(tmp_path).path
    assert entry(tmp_path).path != entry(tmp_path, key="two").path


def test_entry_is_built_once_without_intermediate_files(tmp_path):
    target = entry(tmp_path)
    assert fill(target, whole) == ("whole", False)
    assert fill(target, never) == ("whole", True)
    assert folders(tmp_path) == [target.path.name]
    assert [path.name for path in target.path.iterdir()] == ["content"]


@pytest.mark.parametrize("resumable", [True, False])
def test_interrupted_build_is_resumed_or_restarted(tmp_path, resumable):
    target = entry(tmp_path, resumable=resumable)

    def interrupted(work):
        (work / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(target, interrupted)
    assert not target.path.exists()
    assert target.work.exists() == resumable

    def second(work):
        assert (work / "half").exists() == resumable
        return whole(work)

    assert fill(target, second) == ("whole", False)
    assert folders(tmp_path) == [target.path.name]


def test_damaged_entry_is_built_again(tmp_path):
    target = entry(tmp_path)
    fill(target, whole)
    (target.path / "content").unlink()
    assert fill(target, whole) == ("whole", False)


def test_leftovers_of_a_complete_build_are_removed(tmp_path):
    target = entry(tmp_path)
    fill(target, whole)
    (target.work / "objects").mkdir(parents=True)
    assert fill(target, never) == ("whole", True)
    assert folders(tmp_path) == [target.path.name]


def test_incomplete_build_is_refused(tmp_path):
    with pytest.raises(LabError, match="is incomplete; use --suite forky"):
        fill(entry(tmp_path), lambda work: work)


def test_abandoned_build_of_another_entry_is_removed(tmp_path):
    other = entry(tmp_path, key="two")
    other.work.mkdir()
    fill(entry(tmp_path), whole)
    assert not other.work.exists()


BUILDER = """
import sys, time
from pathlib import Path
from test_cache import entry, fill
def build(work):
    (work / "half").touch()
    print("building", flush=True)
    time.sleep(60)
fill(entry(Path(sys.argv[1])), build)
"""


HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}"}


def command(program, folder):
    return [sys.executable, "-c", program, str(folder)]


def builder(folder):
    """Start a process that builds the entry, and wait until it is in the middle."""
    process = subprocess.Popen(
        command(BUILDER, folder), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 30)[0]
    assert process.stdout.readline() == "building\n"
    return process


def test_killed_build_is_resumed_and_not_used_as_it_is(tmp_path):
    target = entry(tmp_path)
    with builder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
    assert not target.path.exists()
    assert (target.work / "half").exists()
    assert fill(target, whole) == ("whole", False)
    assert folders(tmp_path) == [target.path.name]


def test_second_build_waits_for_the_first(tmp_path):
    target = entry(tmp_path)
    other = entry(tmp_path, key="two")
    with builder(tmp_path) as process:
        fill(other, whole)
        assert target.work.exists(), "a running build is left alone"
        with subprocess.Popen(
            command(WAITER, tmp_path), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        ) as waiter:
            assert waiter.stderr is not None
            assert "waiting for another build of the thing" in waiter.stderr.readline()
            process.kill()
            assert waiter.wait(30) == 0
    assert read(target) == "whole"


WAITER = """
import sys
from pathlib import Path
from test_cache import entry, read, whole
from vmm_msi.lab.build import cache
from vmm_msi.lab.build.progress import Progress
target = entry(Path(sys.argv[1]))
cache.fill(target, lambda: read(target), whole, Progress(sys.stderr))
"""

FULL = """
import sys
from pathlib import Path
from test_cache import entry, fill, whole
from vmm_msi.errors import LabError
target = entry(Path(sys.argv[1]))
def build(work):
    kept = whole(work)
    (work / "object").write_bytes(bytes(1 << 20))
    return kept
try:
    fill(target, build)
except LabError as error:
    print(error)
assert not target.path.exists()
(target.work / "object").unlink()
(target.work / "kept/content").unlink()
(target.work / "kept").rmdir()
print(fill(target, whole))
"""


def test_build_on_a_full_disk_is_resumed(tmp_path):
    if os.geteuid() != 0:
        unavailable("a small file system is mounted: not root")
    mount = 'mount -t tmpfs -o size=256k,mode=755 none "$1" && shift && exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", mount, "sh", str(tmp_path)]
    done = subprocess.run(
        [*inside, *command(FULL, tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    refused, second = done.stdout.splitlines()
    assert "building the thing: " in refused
    assert "No space left on device" in refused
    assert second == "('whole', False)"


def test_missing_space_is_reported_in_advance(tmp_path):
    with pytest.raises(LabError, match=r"testing: .* GB free, 1000000000\.0 GB required; free"):
        host_tools.require_space(tmp_path / "not/there/yet", 10**18, "testing")
    host_tools.require_space(tmp_path, 1, "testing")
