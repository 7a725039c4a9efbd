"""A patch series in an unpacked source: which files it changes, also when it is interrupted."""

from __future__ import annotations

import os
import subprocess
from itertools import count

import pytest

from vmm_msi.errors import LabError
from vmm_msi.lab.build.kernel_flavour import Patch
from vmm_msi.lab.build.patched_source import DamagedSourceError, PatchedSource, files_of

CHANGE = Patch(
    "1-change.patch",
    b"""A new line.
---
 a.c | 2 +-
--- a/dir/a.c
+++ b/dir/a.c
@@ -1,2 +1,2 @@
-one
+ONE
 two
--- a/b.c
+++ b/b.c
@@ -1 +1,2 @@
 three
+four
""",
)
ADD = Patch("2-add.patch", b"--- /dev/null\n+++ b/new/n.c\n@@ -0,0 +1 @@\n+new\n")
ON_TOP = Patch("3-more.patch", b"--- a/b.c\n+++ b/b.c\n@@ -1,2 +1,2 @@\n three\n-four\n+4\n")
REMOVE = Patch("4-remove.patch", b"--- a/c.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-five\n")
PLAIN = {"dir/a.c": "one\ntwo\n", "b.c": "three\n", "c.c": "five\n", "d.c": "six\n"}
CHANGED = {**PLAIN, "dir/a.c": "ONE\ntwo\n", "b.c": "three\nfour\n"}
FULL = {**CHANGED, "new/n.c": "new\n", "b.c": "three\n4\n"}
LESS = {name: text for name, text in FULL.items() if name != "c.c"}


def run_patch(file, folder, _name):
    command = ["patch", "-p1", "--batch", "--forward", f"--input={file}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(done.stdout)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    for name, text in PLAIN.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (1, 1))
    return folder


def content(source):
    return {
        path.relative_to(source).as_posix(): path.read_text()
        for path in source.rglob("*")
        if path.is_file()
    }


def patched(source):
    return PatchedSource(source, source.parent, run_patch)


def test_only_changed_files_are_written(source):
    assert sorted(patched(source).apply([CHANGE])) == ["b.c", "dir/a.c"]
    assert content(source) == CHANGED
    assert (source / "d.c").stat().st_mtime == (source / "c.c").stat().st_mtime == 1
    for name in ("b.c", "dir/a.c"):
        os.utime(source / name, (2, 2))
    assert patched(source).apply([CHANGE]) == []
    assert sorted(patched(source).apply([CHANGE, ADD, ON_TOP])) == ["b.c", "new/n.c"]
    assert content(source) == FULL
    assert (source / "dir/a.c").stat().st_mtime == 2
    assert patched(source).apply([CHANGE, ADD, ON_TOP, REMOVE]) == ["c.c"]
    assert content(source) == LESS
    assert sorted(patched(source).apply([])) == ["b.c", "c.c", "dir/a.c", "new/n.c"]
    assert content(source) == PLAIN
    assert (source / "b.c").stat().st_mtime > 2, "make compiles it again"
    assert (source / "d.c").stat().st_mtime == 1


def test_series_that_does_not_apply_changes_nothing(source):
    patched(source).apply([CHANGE])
    with pytest.raises(LabError, match=r"b\.c"):
        patched(source).apply([ADD, ON_TOP])
    assert content(source) == CHANGED


def test_permissions_are_part_of_a_file(source):
    (source / "b.c").chmod(0o755)
    patched(source).apply([CHANGE])
    assert (source / "b.c").stat().st_mode & 0o777 == 0o755
    (source / "b.c").chmod(0o644)
    assert patched(source).apply([CHANGE]) == ["b.c"]


class KilledError(Exception):
    """The process was killed."""


SERIES = {
    "none": ([], PLAIN),
    "change": ([CHANGE], CHANGED),
    "all": ([CHANGE, ADD, ON_TOP, REMOVE], LESS),
}


@pytest.mark.parametrize("start", SERIES)
@pytest.mark.parametrize("interrupted", SERIES)
def test_interruption_at_any_step_is_repaired(source, monkeypatch, start, interrupted):
    """After each number of system calls that change something."""
    for after in count():
        patched(source).apply(SERIES[start][0])
        calls = iter(range(after))

        def counted(original, calls=calls):
            def call(*arguments, **named):
                if next(calls, None) is None:
                    raise KilledError
                return original(*arguments, **named)

            return call

        with monkeypatch.context() as patch:
            for name in ("rename", "unlink", "mkdir", "write_bytes"):
                owner = type(source)
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                patched(source).apply(SERIES[interrupted][0])
            except KilledError:
                pass
            else:
                break
        for series, expected in SERIES.values():
            patched(source).apply(series)
            assert content(source) == expected
    assert after > 2 or interrupted == "none"


@pytest.mark.parametrize("damage", [b"{", b"[]"])
def test_unreadable_record_is_reported(source, damage):
    patched(source).apply([CHANGE])
    (source.parent / "originals.json").write_bytes(damage)
    with pytest.raises(DamagedSourceError, match=r"originals\.json"):
        patched(source).apply([])


@pytest.mark.parametrize("gone", [True, False])
def test_changed_original_is_reported(source, gone):
    patched(source).apply([CHANGE])
    original = source.parent / "originals/b.c"
    original.unlink() if gone else original.write_text("other")
    with pytest.raises(DamagedSourceError, match=r"originals/b\.c: it is not the original"):
        patched(source).apply([])


def test_files_of_gits_patches(source):
    renamed = Patch(
        "rename.patch",
        b"diff --git a/b.c b/e.c\nsimilarity index 100%\nrename from b.c\nrename to e.c\n",
    )
    assert list(files_of(renamed)) == ["b.c", "e.c"]
    assert sorted(patched(source).apply([renamed])) == ["b.c", "e.c"]
    assert content(source)["e.c"] == "three\n"
    assert sorted(patched(source).apply([])) == ["b.c", "e.c"]
    assert content(source) == PLAIN


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../../x", "a"])
def test_file_outside_the_source_is_refused(source, name):
    patch = Patch("out.patch", f"--- {name}\n+++ {name}\n@@ -0,0 +1 @@\n+x\n".encode())
    with pytest.raises(LabError, match=rf"applying out\.patch: {name} is outside the source"):
        patched(source).apply([patch])
