"""The states that an entry of the lab's cache can be in, whoever fills it and however it ends."""

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
    made_from = {"key": key}
    return caches.entry(folder, "thing", "the thing", ("word",), made_from, resumable=resumable)


def read(place):
    try:
        return (place.path / "content").read_text()
    except OSError:
        return None


def fill(place, build):
    return caches.fill(place, lambda: read(place), build)


def whole(work):
    """Build in a folder within, and leave something that is not to be kept."""
    (work / "objects").mkdir(exist_ok=True)
    (work / "kept").mkdir()
    (work / "kept/content").write_text("whole")
    return work / "kept"


def never(_work):
    raise AssertionError("built again")


def folders(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_key_follows_what_it_is_made_from(tmp_path):
    assert entry(tmp_path).path == entry(tmp_path).path
    assert entry(tmp_path).path != entry(tmp_path, key="two").path


def test_filled_once_and_only_what_is_to_be_kept(tmp_path):
    place = entry(tmp_path)
    assert fill(place, whole) == ("whole", False)
    assert fill(place, never) == ("whole", True)
    assert folders(tmp_path) == [place.path.name]
    assert [path.name for path in place.path.iterdir()] == ["content"]


@pytest.mark.parametrize("resumable", [True, False])
def test_interrupted_build_is_gone_on_with_or_started_anew(tmp_path, resumable):
    place = entry(tmp_path, resumable=resumable)

    def interrupted(work):
        (work / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(place, interrupted)
    assert not place.path.exists()
    assert place.work.exists() == resumable

    def second(work):
        assert (work / "half").exists() == resumable
        return whole(work)

    assert fill(place, second) == ("whole", False)
    assert folders(tmp_path) == [place.path.name]


def test_damaged_entry_is_built_again(tmp_path):
    place = entry(tmp_path)
    fill(place, whole)
    (place.path / "content").unlink()
    assert fill(place, whole) == ("whole", False)


def test_killed_between_the_rename_and_the_tidying(tmp_path):
    place = entry(tmp_path)
    fill(place, whole)
    (place.work / "objects").mkdir(parents=True)
    assert fill(place, never) == ("whole", True)
    assert folders(tmp_path) == [place.path.name]


def test_what_lacks_its_purpose_is_refused(tmp_path):
    with pytest.raises(LabError, match="is incomplete; use --suite forky"):
        fill(entry(tmp_path), lambda work: work)


def test_another_entry_that_was_left_is_removed(tmp_path):
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
    """Start a process that is in the middle of building the entry."""
    process = subprocess.Popen(
        command(BUILDER, folder), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 30)[0]
    assert process.stdout.readline() == "building\n"
    return process


def test_killed_build_is_not_taken_and_gone_on_with(tmp_path):
    place = entry(tmp_path)
    with builder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
    assert not place.path.exists()
    assert (place.work / "half").exists()
    assert fill(place, whole) == ("whole", False)
    assert folders(tmp_path) == [place.path.name]


def test_second_build_waits_for_the_first(tmp_path):
    place = entry(tmp_path)
    other = entry(tmp_path, key="two")
    with builder(tmp_path) as process:
        fill(other, whole)
        assert place.work.exists(), "a build that still runs is left alone"
        with subprocess.Popen(
            command(WAITER, tmp_path), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        ) as waiter:
            assert waiter.stderr is not None
            assert "waiting for another build of the thing" in waiter.stderr.readline()
            process.kill()
            assert waiter.wait(30) == 0
    assert read(place) == "whole"


WAITER = """
import sys
from pathlib import Path
from test_cache import entry, read, whole
from vmm_msi.lab.build import cache
from vmm_msi.lab.build.progress import Progress
place = entry(Path(sys.argv[1]))
cache.fill(place, lambda: read(place), whole, Progress(sys.stderr))
"""

FULL = """
import sys
from pathlib import Path
from test_cache import entry, fill, whole
from vmm_msi.errors import LabError
place = entry(Path(sys.argv[1]))
def build(work):
    kept = whole(work)
    (work / "object").write_bytes(bytes(1 << 20))
    return kept
try:
    fill(place, build)
except LabError as error:
    print(error)
assert not place.path.exists()
(place.work / "object").unlink()
(place.work / "kept/content").unlink()
(place.work / "kept").rmdir()
print(fill(place, whole))
"""


def test_full_disk(tmp_path):
    if os.geteuid() != 0:
        unavailable("a small file system is mounted: not root")
    mount = 'mount -t tmpfs -o size=256k none "$1" && shift && exec "$@"'
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


def test_missing_space_is_said_before(tmp_path):
    with pytest.raises(LabError, match=r"testing: .* GB free, 1000000000\.0 GB required; free"):
        host_tools.require_space(tmp_path / "not/there/yet", 10**18, "testing")
    host_tools.require_space(tmp_path, 1, "testing")
